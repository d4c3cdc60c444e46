"""Interchange interventions: put a source prompt's variable into a base prompt, and ask.

Every way to exchange changes the base's vector x at one position to

    x + M (x' - x)      subspace: M = R R^T, R [d, k] with orthonormal columns
                        latents:  M (x' - x) = sum over chosen i of (z'_i - z_i) d_i

with x' the source's vector. `everything` is M = 1. R is learned (DAS, Geiger et al. 2023), random
or holds principal directions; the latents are chosen by the first-order effect of their change or
learned (a mask, as in `protocols.ravel_mask`); neurons are latents of the coordinates. Learning
minimises the cross-entropy with the expected answer on training pairs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.dictionaries.code import Coder
from unweave.subject import Subject
from unweave.subject.prompts import padded


class Counterfactual(NamedTuple):
    """A base prompt, a source prompt, and what the base should answer with the source's value."""

    base: tuple[int, ...]
    """Token ids, start token included."""
    source: tuple[int, ...]
    """Token ids, start token included."""
    base_position: int
    """Where the variable is exchanged in the base."""
    source_position: int
    """Where it is read in the source."""
    base_answer: int
    """Token that follows the base."""
    source_answer: int
    """Token that follows the source."""
    expected: int
    """Token that should follow the base with the source's value."""


class LearnSettings(BaseModel):
    """Settings of what is learned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: PositiveInt = 6
    """Passes over the training pairs."""
    rate: PositiveFloat = 0.05
    """Adam's learning rate."""
    batch: PositiveInt = 16
    """Pairs of a step."""
    first_temperature: PositiveFloat = 1.0
    """Of the mask's sigmoid at the first step."""
    last_temperature: PositiveFloat = 0.05
    """At the last one; afterwards the mask is what is above one half."""


class Exchange(NamedTuple):
    """Vectors of base and source for each pair, and the pairs."""

    pairs: tuple[Counterfactual, ...]
    base: Float[Tensor, "pairs d"]
    source: Float[Tensor, "pairs d"]

    def of(self, which: Int[Tensor, " some"]) -> "Exchange":
        """Some of the pairs."""
        chosen = tuple(self.pairs[at] for at in which.tolist())
        which = which.to(self.base.device)
        return Exchange(chosen, self.base[which], self.source[which])

    @property
    def expected(self) -> Int[Tensor, " pairs"]:
        """What each should answer."""
        return torch.tensor([pair.expected for pair in self.pairs], device=self.base.device)


Move = Callable[[Exchange], Tensor]
"""What is added to each base's vector, [pairs, d]."""


@torch.no_grad()
def exchange_of(subject: Subject, site: str, pairs: Sequence[Counterfactual]) -> Exchange:
    """Run both prompts of each pair and keep the vectors where the variable is."""
    sides = []
    for side in ("base", "source"):
        parts = []
        for at in range(0, len(pairs), 32):
            some = pairs[at : at + 32]
            group = padded([getattr(pair, side) for pair in some])
            places = torch.tensor([getattr(pair, f"{side}_position") for pair in some])
            found = subject.run(group.tokens, capture=[site], logits=False).sites[site]
            parts.append(found[torch.arange(len(some)), places].flatten(1).float())
        sides.append(torch.cat(parts))
    return Exchange(tuple(pairs), *sides)


def answers_after(
    subject: Subject, site: str, some: Exchange, move: Float[Tensor, "pairs d"]
) -> Float[Tensor, "pairs vocab"]:
    """Logits after each base prompt with its vector moved.

    Nothing else is turned into logits, which a large vocabulary makes dear.
    """
    group = padded([pair.base for pair in some.pairs])
    at = torch.tensor([pair.base_position for pair in some.pairs])
    rows = torch.arange(len(some.pairs))
    path = subject.place("final").module
    ends = _Ends(subject.model.get_submodule(path), group.last)

    def visit(tensor: Tensor) -> Tensor:
        shift = move.to(tensor.dtype).view(len(rows), *tensor.shape[2:])
        return tensor + torch.zeros_like(tensor).index_put((rows, at), shift)

    with subject.swapped({path: ends}):
        logits = subject.run(group.tokens, replace={site: visit}).logits
    assert logits is not None
    return logits[:, 0].float()


class _Ends(nn.Module):
    """The norm before the unembedding, at the last token of each prompt alone."""

    def __init__(self, norm: nn.Module, last: Int[Tensor, " rows"]) -> None:
        super().__init__()
        self._norm, self._last = norm, last

    def forward(self, x: Float[Tensor, "rows pos d"]) -> Float[Tensor, "rows 1 d"]:
        return self._norm(x[torch.arange(len(x)), self._last][:, None])


def everything(some: Exchange) -> Float[Tensor, "pairs d"]:
    """The whole vector."""
    return some.source - some.base


def along(basis: Float[Tensor, "d k"]) -> Move:
    """The part inside a subspace of orthonormal columns."""
    return lambda some: everything(some) @ basis @ basis.T


def random_basis(d: int, k: int, *, seed: int) -> Float[Tensor, "d k"]:
    """Orthonormal columns in no particular direction."""
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed)))[0]


def of_latents(coder: Coder, weight: Float[Tensor, " latents"]) -> Move:
    """Latents exchanged, each by its weight; what the coder does not reproduce stays the base's."""
    directions = coder.directions().float()
    return lambda some: (changes(coder, some) * weight) @ directions


@torch.no_grad()
def changes(coder: Coder, some: Exchange) -> Float[Tensor, "pairs latents"]:
    """How much more of each latent the source has than the base."""
    return (coder.encode(some.source).dense() - coder.encode(some.base).dense()).float()


def most_effective(
    subject: Subject, site: str, train: Exchange, coder: Coder, k: int
) -> Float[Tensor, " latents"]:
    """1 for the k latents whose exchange raises the expected answer's log-probability most, to
    first order: the mean of (z'_i - z_i) d_i times the gradient at the base.
    """
    effect = torch.zeros(coder.n_latents, device=train.base.device)
    for which in torch.arange(len(train.pairs)).split(32):
        some = train.of(which)
        with torch.enable_grad():
            still = torch.zeros_like(some.base, requires_grad=True)
            loss = _loss(answers_after(subject, site, some, still), some)
            (gradient,) = torch.autograd.grad(loss * len(which), still)
        effect -= (changes(coder, some) * (gradient @ coder.directions().float().T)).sum(0)
    return torch.zeros_like(effect).index_fill(0, effect.topk(k).indices, 1.0)


def _loss(logits: Tensor, some: Exchange) -> Tensor:
    return F.cross_entropy(logits, some.expected.to(logits.device))


def learned_basis(
    subject: Subject, site: str, train: Exchange, k: int, settings: LearnSettings, *, seed: int
) -> Float[Tensor, "d k"]:
    """DAS: the subspace whose exchange gives the expected answers best."""
    free = random_basis(train.base.shape[1], k, seed=seed).to(train.base.device).requires_grad_()
    _descend(
        subject, site, train, [free], lambda _: along(torch.linalg.qr(free)[0]), settings, seed
    )
    return torch.linalg.qr(free.detach())[0]


def learned_weight(
    subject: Subject, site: str, train: Exchange, coder: Coder, settings: LearnSettings,
    *, seed: int,
) -> Float[Tensor, " latents"]:  # fmt: skip
    """1 for the latents that a mask learned in training pairs exchanges."""
    logit = torch.zeros(coder.n_latents, device=train.base.device, requires_grad=True)
    fall = settings.last_temperature / settings.first_temperature

    def move(done: float) -> Move:
        temperature = settings.first_temperature * fall**done
        return of_latents(coder, torch.sigmoid(logit / temperature))

    _descend(subject, site, train, [logit], move, settings, seed)
    return (logit.detach() > 0).float()


def _descend(
    subject: Subject,
    site: str,
    train: Exchange,
    parameters: list[Tensor],
    move: Callable[[float], Move],
    settings: LearnSettings,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(parameters, lr=settings.rate)
    batches = [
        which
        for _ in range(settings.epochs)
        for which in torch.randperm(len(train.pairs), generator=random).split(settings.batch)
    ]
    for step, which in enumerate(batches):
        some = train.of(which)
        with torch.enable_grad():
            shift = move(step / max(1, len(batches) - 1))(some)
            loss = _loss(answers_after(subject, site, some, shift), some)
            adam.zero_grad()
            loss.backward()
        adam.step()
