"""The strict aggregation test of a whole decompiled network.

A context x of tokens is explained by a set of latents N(x), drawn from all parts and the same at
every position. With everything else masked at *every* position of the context but the start, the
network must still predict what it predicts. The parts' errors stay what they are, nothing is
original but the skeleton.

    F        the decompiled network, F|U with all latents outside of U masked at all positions
    plain    KL(original(x) || F(x))
    N(x)     the fewest latents in the order of their attribution with
             KL(F(x) || F|N(x) (x)) <= bound                        (`smallest`)

where a latent's attribution is the size of activation x gradient of F's likeliest next token,
summed over positions. What is asked is whether explanations add up:

    own      KL(original(x) || F|N(x) u N(x1) u ... (x)), the context's own among `count`
    others   the same without the context's own, as the prototypes measured it
    fires    others again, but every latent that fires in a context counts as its explanation

`own` at most twice `plain` is the goal. A union of everything that fires cannot fail `own` (what it
adds is idle), so that a large explanation passes for nothing: sizes stand beside. Masks come after
the k largest are chosen, so that no latent takes a masked one's place; with `reselect` they come
before, and allowed latents that lost against masked ones become active.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.part import Part
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.adversarial import attributions
from unweave.training.joint import kl_per_token
from unweave.training.masked_stand_in import masked_stand_ins, split_like
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.bootstrap import BootstrapSettings, Interval, mean_interval
from unweave.validate.interventions.aggregation import smallest
from unweave.validate.interventions.masking import NEVER

DONORS = ("own", "random", "others", "fires")
"""What is united: own among others; own and as many latents as those add, drawn by how often they
are needed; others only; all that fires in others."""


class NetworkAggregationSettings(BaseModel):
    """How a decompiled network is tested."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bound: PositiveFloat = 0.05
    """KL, nats, that a context's own explanation may move the decompiled network's prediction."""
    unions: tuple[PositiveInt, ...] = (1, 2, 8, 64)
    """Contexts whose explanations are united; the asked one among them where it is `own`."""
    asked: PositiveInt = 64
    """Contexts asked after, the first of the rows; all rows are donors."""
    reselect: bool = False
    """Whether allowed latents may take the place of masked ones."""
    at_once: PositiveInt = 32
    """Contexts run at once."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals, over contexts asked."""


class NetworkAggregation(NamedTuple):
    """KL from the original at the last position, nats."""

    plain: Interval
    """Of the decompiled network."""
    kl: dict[str, dict[int, Interval]]
    """By whose explanations are united (`DONORS`) and how many."""
    size: dict[str, dict[int, float]]
    """Latents in those unions, on average."""
    nothing: Interval
    """With all latents masked."""
    needed: float
    """Latents in an explanation, on average."""
    fires: float
    """Latents that fire anywhere in a context, on average."""


class Explanations(NamedTuple):
    """What each context needs."""

    needed: Bool[Tensor, "rows latents"]
    """N(x)."""
    fires: Bool[Tensor, "rows latents"]
    """What is ever active."""


class Contexts(NamedTuple):
    """Rows that end at the asked position."""

    rows: Int[Tensor, "rows pos"]
    """Token ids."""
    original: Float[Tensor, "rows vocab"]
    """The original's logits at the last position."""
    made: Float[Tensor, "rows vocab"]
    """The decompiled network's."""

    def at(self, which: Tensor) -> "Contexts":
        """Some of them."""
        return Contexts(*(one[which] for one in self))


@torch.no_grad()
def contexts_of(
    subject: Subject, parts: Mapping[str, Part], rows: Int[Tensor, "rows pos"], *, at_once: int = 32
) -> Contexts:
    """Both networks' predictions."""
    original = torch.cat([_last(subject, group) for group in rows.split(at_once)])
    with subject.swapped(stand_ins(parts.values(), AtStart())):
        made = torch.cat([_last(subject, group) for group in rows.split(at_once)])
    return Contexts(rows, original, made)


def explanations(
    subject: Subject,
    parts: Mapping[str, Part],
    contexts: Contexts,
    settings: NetworkAggregationSettings,
    *,
    progress: Progress = QUIET,
) -> Explanations:
    """N(x) of every context."""
    score = torch.cat(
        [
            torch.cat(list(attributions(subject, parts, group, spans=1).values()), -1)[:, 0]
            for group in contexts.rows.split(settings.at_once)
        ]
    )
    rank = score.argsort(1, descending=True).argsort(1)
    fires = score != 0

    def bad(at: Tensor, size: Tensor) -> Tensor:
        keep = rank[at] < size[:, None]
        made = masked_logits(subject, parts, contexts.rows[at], keep, settings)
        return kl_per_token(contexts.made[at], made) > settings.bound

    steps = 2 * int(fires.sum(1).max()).bit_length()
    with progress.task("aggregation: explanations", total=steps, unit="steps") as advance:
        needed = rank < smallest(bad, fires.sum(1), advance)[:, None]
    return Explanations(needed, fires)


@torch.no_grad()
def masked_logits(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    keep: Bool[Tensor, "rows latents"],
    settings: NetworkAggregationSettings,
) -> Float[Tensor, "rows vocab"]:
    """F|U at the last position; `keep` has the latents of all parts one after another."""
    groups = zip(rows.split(settings.at_once), keep.split(settings.at_once), strict=True)
    return torch.cat([_masked(subject, parts, *group, settings) for group in groups])


def _masked(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Tensor,
    keep: Tensor,
    settings: NetworkAggregationSettings,
) -> Tensor:
    if settings.reselect:
        alone = [_narrowed(subject, parts, row, own) for row, own in zip(rows, keep, strict=True)]
        return torch.cat(alone)
    strengths = split_like(parts, keep[:, None].float())
    with subject.swapped(masked_stand_ins(parts, strengths, AtStart())):
        return _last(subject, rows)


def _narrowed(subject: Subject, parts: Mapping[str, Part], row: Tensor, keep: Tensor) -> Tensor:
    """One context in a network whose other latents never come among the k largest."""
    narrow = {}
    for name, own in split_like(parts, keep[None, None]).items():
        part = Part(parts[name].spec)
        part.load_state_dict(parts[name].state_dict())
        part.W_enc.data[~own[0, 0]] = 0
        part.b_enc.data[~own[0, 0]] = NEVER
        narrow[name] = part
    with subject.swapped(stand_ins(narrow.values(), AtStart())):
        return _last(subject, row[None])


def aggregate_network(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    settings: NetworkAggregationSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> NetworkAggregation:
    """The test; all rows are donors, the first `asked` are asked after."""
    settings = settings or NetworkAggregationSettings()
    contexts = contexts_of(subject, parts, rows, at_once=settings.at_once)
    known = explanations(subject, parts, contexts, settings, progress=progress)
    few = contexts.at(torch.arange(min(settings.asked, len(rows))))
    random = torch.Generator().manual_seed(seed)

    def cost(keep: Tensor) -> Interval:
        made = masked_logits(subject, parts, few.rows, keep, settings)
        return _interval(few.original, made, settings)

    kl: dict[str, dict[int, Interval]] = {name: {} for name in DONORS}
    size: dict[str, dict[int, float]] = {name: {} for name in DONORS}
    for count in [each for each in settings.unions if each < len(rows)]:
        for name, union in unions(known, len(few.rows), count, random).items():
            kl[name][count] = cost(union)
            size[name][count] = union.sum(1).double().mean().item()
    return NetworkAggregation(
        plain=_interval(few.original, few.made, settings),
        kl=kl,
        size=size,
        nothing=cost(torch.zeros_like(known.needed[: len(few.rows)])),
        needed=known.needed.sum(1).double().mean().item(),
        fires=known.fires.sum(1).double().mean().item(),
    )


def unions(
    known: Explanations, asked: int, count: int, random: torch.Generator
) -> dict[str, Bool[Tensor, "asked latents"]]:
    """What is kept for each of the first contexts, by `DONORS`; donors are drawn anew."""
    order = torch.rand(asked, len(known.needed), generator=random)
    order[torch.arange(asked), torch.arange(asked)] = -1
    donors = order.topk(count, dim=1).indices
    mine = known.needed[:asked]
    others = torch.stack([known.needed[each].any(0) for each in donors])
    own = torch.stack([known.needed[each[: count - 1]].any(0) for each in donors]) | mine
    often = known.needed.float().sum(0)
    like = mine.clone()
    for row, kept in zip(own, like, strict=True):
        weight = often.masked_fill(kept, 0)
        more = min(int(row.sum() - kept.sum()), int((weight > 0).sum()))
        if more:
            kept[torch.multinomial(weight, more, generator=random)] = True
    fires = torch.stack([known.fires[each].any(0) for each in donors])
    return {"own": own, "random": like, "others": others, "fires": fires}


def _interval(original: Tensor, made: Tensor, settings: NetworkAggregationSettings) -> Interval:
    found = kl_per_token(original, made).double().cpu().numpy()
    return mean_interval(found, settings.bootstrap)


def _last(subject: Subject, rows: Tensor) -> Tensor:
    logits = subject.run(rows).logits
    assert logits is not None
    return logits[:, -1].float()
