"""Interchange interventions: does swapping a variable's place swap what the network answers?

At one site and position of a base row, the value is exchanged for that of a source row, wholly or
in a few dimensions; the answer must then be the one that the source's variable demands (Geiger et
al. 2021; learned rotations: Geiger et al. 2024, distributed alignment search).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.dictionaries.code import Coder, SparseCode
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.placed import difference
from unweave.validate.protocols.protocol import Refused


class InterchangePairs(NamedTuple):
    """Pairs of rows; answers are read at the last position."""

    base: Int[Tensor, "pairs pos"]
    """Rows that are changed."""
    source: Int[Tensor, "pairs pos"]
    """Rows that the value comes from."""
    position: Int[Tensor, " pairs"]
    """Where it is exchanged, in both."""
    answer: Int[Tensor, " pairs"]
    """The right token for the base row as it is."""
    expected: Int[Tensor, " pairs"]
    """The right token once the variable is the source's."""


class InterchangeSettings(BaseModel):
    """Settings of the interchange interventions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dimensions: int = Field(default=1, ge=1)
    """Dimensions, neurons or latents that are exchanged."""
    steps: int = Field(default=200, ge=1)
    """Steps of learning the rotation."""
    batch: int = Field(default=32, ge=1)
    """Pairs of a step and of a pass."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate of Adam."""
    seed: int = 0
    """Seed of the rotation's start, its batches, the random subspace and the shuffle."""


class InterchangeReport(Record):
    """Share of test pairs answered as expected, with Wilson's 95% intervals."""

    subject: Interval
    """The subject's own accuracy on the base rows."""
    chance: float
    """Share of the commonest answer of the base rows."""
    full: Interval
    """The whole vector exchanged: what this place can do at most."""
    latents: Interval | None
    """Latents that differ most on training pairs; null where no dictionary was given."""
    rotation: Interval
    """A subspace learned on training pairs."""
    neurons: Interval
    """Coordinates of the site that differ most on training pairs."""
    random: Interval
    """Control: a random subspace of as many dimensions."""
    shuffled: Interval
    """Control: the learned subspace against the expectations of other pairs."""


class _Exchange(NamedTuple):
    """Pairs with the vectors of both rows at the site."""

    pairs: InterchangePairs
    base: Float[Tensor, "pairs d"]
    source: Float[Tensor, "pairs d"]


def interchange(
    subject: Subject,
    site: str,
    train: InterchangePairs,
    test: InterchangePairs,
    dictionary: Coder | None = None,
    settings: InterchangeSettings | None = None,
    progress: Progress = QUIET,
) -> InterchangeReport:
    """Exchange a variable at one site in every way, chosen on `train`, counted on `test`.

    Raises:
        Refused: the subject's accuracy on the test's base rows is not above chance.
        UserError: there are no pairs, or more dimensions than the site has.
    """
    settings = settings or InterchangeSettings()
    if not len(train.base) or not len(test.base):
        raise UserError("interchange needs pairs of both kinds: give training and test pairs")
    own, chance = _able(subject, test, settings)
    known, new = (_exchange(subject, site, pairs, settings) for pairs in (train, test))
    width, k = known.base.shape[1], settings.dimensions
    if k > width:
        raise UserError(f"{site} has {width} dimensions, so {k} cannot be exchanged: ask for fewer")
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.linalg.qr(torch.randn(width, k, generator=generator)).Q.to(known.base)
    apart = (known.source - known.base).abs().mean(0)
    neurons = torch.eye(width).to(known.base)[:, apart.topk(k).indices]
    learned = learn_rotation(subject, site, known, settings, progress)
    answers = {
        name: _answers(subject, site, new, new.base + (new.source - new.base) @ span @ span.T)
        for name, span in {"rotation": learned, "neurons": neurons, "random": drawn}.items()
    }
    answers["full"] = _answers(subject, site, new, new.source)
    if dictionary is not None:
        moved = _by_latents(dictionary, known, new, k)
        answers["latents"] = _answers(subject, site, new, moved)
    found = {name: _share(given == test.expected) for name, given in answers.items()}
    other = test.expected[torch.randperm(len(test.expected), generator=generator)]
    return InterchangeReport(
        subject=own,
        chance=chance,
        full=found["full"],
        latents=found.get("latents"),
        rotation=found["rotation"],
        neurons=found["neurons"],
        random=found["random"],
        shuffled=_share(answers["rotation"] == other),
    )


def wilson(right: int, of: int) -> Interval:
    """A share with Wilson's 95% interval (Wilson 1927).

    >>> wilson(10, 10).high
    1.0
    """
    z, p = 1.959964, right / of
    middle = (p + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * (p * (1 - p) / of + z * z / (4 * of * of)) ** 0.5
    low, high = max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))
    return Interval(value=p, low=low, high=high)


def learn_rotation(
    subject: Subject,
    site: str,
    known: _Exchange,
    settings: InterchangeSettings,
    progress: Progress = QUIET,
) -> Float[Tensor, "d k"]:
    """Orthonormal directions whose exchange gives the expected answers (distributed alignment)."""
    generator = torch.Generator().manual_seed(settings.seed + 1)
    start = torch.randn(known.base.shape[1], settings.dimensions, generator=generator)
    free = start.to(known.base).requires_grad_()
    adam = torch.optim.Adam([free], lr=settings.lr)
    size = min(settings.batch, len(known.base))
    with progress.task("rotation", total=settings.steps, unit="steps") as advance:
        for _ in range(settings.steps):
            some = torch.randperm(len(known.base), generator=generator)[:size]
            span = torch.linalg.qr(free).Q
            base, source = known.base[some], known.source[some]
            logits = _logits(
                subject,
                site,
                known.pairs.base[some],
                known.pairs.position[some],
                base + (source - base) @ span @ span.T,
            )
            expected = known.pairs.expected[some].to(logits.device)
            loss = torch.nn.functional.cross_entropy(logits, expected)
            adam.zero_grad()
            loss.backward()
            adam.step()
            advance(1)
    return torch.linalg.qr(free.detach()).Q


def _logits(
    subject: Subject,
    site: str,
    rows: Int[Tensor, "pairs pos"],
    position: Int[Tensor, " pairs"],
    new: Float[Tensor, "pairs d"],
) -> Float[Tensor, "pairs vocab"]:
    """At the last position, with other vectors at the site and positions."""

    def swap(tensor: Tensor) -> Tensor:
        at = (torch.arange(len(rows), device=tensor.device), position.to(tensor.device))
        return tensor.index_put(at, new.view(len(rows), *tensor.shape[2:]).to(tensor.dtype))

    logits = subject.run(rows, replace={site: swap}).logits
    assert logits is not None
    return logits[:, -1].float()


@torch.no_grad()
def _answers(
    subject: Subject, site: str, at: _Exchange, new: Float[Tensor, "pairs d"]
) -> Int[Tensor, " pairs"]:
    batches = zip(at.pairs.base.split(32), at.pairs.position.split(32), new.split(32), strict=True)
    found = [_logits(subject, site, *batch).argmax(1).cpu() for batch in batches]
    return torch.cat(found)


@torch.no_grad()
def _exchange(
    subject: Subject, site: str, pairs: InterchangePairs, settings: InterchangeSettings
) -> _Exchange:
    def vectors(rows: Tensor) -> Tensor:
        found = []
        size = settings.batch
        for batch, position in zip(rows.split(size), pairs.position.split(size), strict=True):
            whole = subject.run(batch, capture=[site], logits=False).sites[site].flatten(2)
            found.append(whole[torch.arange(len(batch)), position].float())
        return torch.cat(found)

    return _Exchange(pairs, vectors(pairs.base), vectors(pairs.source))


@torch.no_grad()
def _by_latents(
    dictionary: Coder, known: _Exchange, new: _Exchange, k: int
) -> Float[Tensor, "pairs d"]:
    """Base vectors whose chosen latents are the source's; what is not coded stays."""
    apart = dictionary.encode(known.source).dense() - dictionary.encode(known.base).dense()
    reach = apart.abs().mean(0) * dictionary.directions().norm(dim=1)
    chosen = reach.topk(min(k, len(reach))).indices
    code = dictionary.encode(new.base)
    changed = code.dense()
    changed[:, chosen] = dictionary.encode(new.source).dense()[:, chosen]
    return new.base + difference(dictionary, new.base, code, SparseCode.from_dense(changed))


@torch.no_grad()
def _able(
    subject: Subject, pairs: InterchangePairs, settings: InterchangeSettings
) -> tuple[Interval, float]:
    found = []
    for batch in pairs.base.split(settings.batch):
        logits = subject.run(batch).logits
        assert logits is not None
        found.append(logits[:, -1].argmax(1).cpu())
    own = _share(torch.cat(found) == pairs.answer)
    chance = pairs.answer.unique(return_counts=True)[1].max().item() / len(pairs.answer)
    if own.low is None or own.low <= chance:
        raise Refused(
            f"{subject.name} gives {own.value:.0%} of the base rows' answers, which is not above"
            f" the {chance:.0%} of always saying the commonest: it has no variable to exchange"
        )
    return own, chance


def _share(right: Tensor) -> Interval:
    return wilson(int(right.sum()), len(right))
