"""Interchange interventions: put a source prompt's variable into a base prompt, and ask.

Every way to exchange changes the base's vector x at one position to

    x + M (x' - x)      subspace: M = R R^T, R [d, k] with orthonormal columns
                        latents:  M (x' - x) = sum over chosen i of (z'_i - z_i) d_i

with x' the source's vector. `everything` is M = 1. R is learned (DAS, Geiger et al. 2023) or
random; the latents are chosen by the size of their mean change or learned (a mask, as in
`protocols.ravel_mask`); neurons are latents of the coordinates. Learning minimises the
cross-entropy with the expected answer on training pairs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor
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

    epochs: PositiveInt = 8
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
        return Exchange(chosen, self.base[which], self.source[which])

    @property
    def expected(self) -> Int[Tensor, " pairs"]:
        """What each should answer."""
        return torch.tensor([pair.expected for pair in self.pairs])


Move = Callable[[Exchange], Tensor]
"""What is added to each base's vector, [pairs, d]."""


@torch.no_grad()
def exchange_of(subject: Subject, site: str, pairs: Sequence[Counterfactual]) -> Exchange:
    """Run both prompts of each pair and keep the vectors where the variable is."""
    sides = []
    for side in ("base", "source"):
        group = padded([getattr(pair, side) for pair in pairs])
        at = torch.tensor([getattr(pair, f"{side}_position") for pair in pairs])
        found = subject.run(group.tokens, capture=[site], logits=False).sites[site]
        sides.append(found[torch.arange(len(pairs)), at].flatten(1).float())
    return Exchange(tuple(pairs), *sides)


def answers_after(
    subject: Subject, site: str, some: Exchange, move: Float[Tensor, "pairs d"]
) -> Float[Tensor, "pairs vocab"]:
    """Logits after each base prompt with its vector moved."""
    group = padded([pair.base for pair in some.pairs])
    at = torch.tensor([pair.base_position for pair in some.pairs])
    rows = torch.arange(len(some.pairs))

    def visit(tensor: Tensor) -> Tensor:
        shift = move.to(tensor.dtype).view(len(rows), *tensor.shape[2:])
        return tensor + torch.zeros_like(tensor).index_put((rows, at), shift)

    logits = subject.run(group.tokens, replace={site: visit}).logits
    assert logits is not None
    return logits[rows, group.last].float()


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

    def move(some: Exchange) -> Tensor:
        with torch.no_grad():
            change = coder.encode(some.source).dense() - coder.encode(some.base).dense()
        return (change.float() * weight) @ directions

    return move


@torch.no_grad()
def most_changed(coder: Coder, train: Exchange, k: int) -> Float[Tensor, " latents"]:
    """1 for the k latents that change most between source and base on average, by what they
    write.
    """
    change = coder.encode(train.source).dense() - coder.encode(train.base).dense()
    size = change.abs().mean(0) * coder.directions().norm(dim=1)
    return torch.zeros(coder.n_latents).index_fill(0, size.topk(k).indices, 1.0)


def learned_basis(
    subject: Subject, site: str, train: Exchange, k: int, settings: LearnSettings, *, seed: int
) -> Float[Tensor, "d k"]:
    """DAS: the subspace whose exchange gives the expected answers best."""
    free = random_basis(train.base.shape[1], k, seed=seed).requires_grad_()
    _descend(
        subject, site, train, [free], lambda _: along(torch.linalg.qr(free)[0]), settings, seed
    )
    return torch.linalg.qr(free.detach())[0]


def learned_weight(
    subject: Subject, site: str, train: Exchange, coder: Coder, settings: LearnSettings,
    *, seed: int,
) -> Float[Tensor, " latents"]:  # fmt: skip
    """1 for the latents that a mask learned in training pairs exchanges."""
    logit = torch.zeros(coder.n_latents, requires_grad=True)
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
            loss = F.cross_entropy(answers_after(subject, site, some, shift), some.expected)
            adam.zero_grad()
            loss.backward()
        adam.step()
