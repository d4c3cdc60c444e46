"""How many heads do several unrelated things: an estimate that needs no eyes.

Kissane et al. (2024, 2406.17759) take the ten latents that belong to a head most by decoder weight,
read them, and call the head polysemantic unless they are about one thing: at least 90 % of
GPT-2 small's heads. Here latents come with a class each (the kind of source that they read from,
say, or what their description is about) and a head is polysemantic if its commonest class has less
than `most` of them. That is another measure: classes are coarser than a reader (two different jobs
in one class count as one) and blunter (one job can fall into two classes at a border), so that only
the difference from latents dealt out to heads at random can be read. If that is none, the classes
say nothing about heads, whatever the share is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.circuits.attention.head_weights import Shares, top_latents


class PolysemanticitySettings(BaseModel):
    """When a head counts as polysemantic."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    count: PositiveInt = 10
    """Latents of a head that are looked at."""
    most: float = Field(default=0.8, gt=0, le=1)
    """A head is of one kind if so large a share of them is of one class."""
    deals: PositiveInt = 100
    """Times that latents are dealt out to heads at random, for the control."""
    seed: int = 0
    """Seed of the deals."""


class Polysemanticity(NamedTuple):
    """Heads of one block, or of several put together."""

    share: float
    """Share of heads that are polysemantic."""
    commonest: Float[Tensor, " heads"]
    """Share of each head's latents that are of its commonest class."""
    classes: Float[Tensor, " heads"]
    """Effective number of classes: the exponential of their entropy."""
    dealt_share: float
    """`share` when latents are dealt out at random: what the classes' frequencies alone give."""
    dealt_commonest: float
    """Mean of `commonest` then."""
    dealt_classes: float
    """Mean of `classes` then."""


def polysemanticity(
    shares: Shares,
    classes: Int[Tensor, " latents"],
    *,
    among: Bool[Tensor, " latents"] | None = None,
    settings: PolysemanticitySettings | None = None,
) -> Polysemanticity:
    """Estimate from how latents belong to heads and the class of each (-1: none, left out).

    Raises:
        UserError: fewer latents with a class than are looked at.
    """
    settings = settings or PolysemanticitySettings()
    there = classes >= 0 if among is None else (classes >= 0) & among
    tops = top_latents(shares, settings.count, among=there)
    commonest, effective = _spread(classes[tops])
    known = there.nonzero()[:, 0]
    g = torch.Generator().manual_seed(settings.seed)
    dealt = torch.stack(
        [
            known[torch.randperm(len(known), generator=g)[: settings.count]]
            for _ in range(settings.deals)
        ]
    )
    by_chance, effective_by_chance = _spread(classes[dealt])
    return Polysemanticity(
        share=_several(commonest, settings.most),
        commonest=commonest,
        classes=effective,
        dealt_share=_several(by_chance, settings.most),
        dealt_commonest=by_chance.mean().item(),
        dealt_classes=effective_by_chance.mean().item(),
    )


def _spread(
    classes: Int[Tensor, "heads count"],
) -> tuple[Float[Tensor, " heads"], Float[Tensor, " heads"]]:
    """Share of the commonest class in each row, and the effective number of classes."""
    one_hot = torch.nn.functional.one_hot(classes, int(classes.max()) + 1).double()
    frequency = one_hot.mean(1)
    entropy = -torch.special.xlogy(frequency, frequency).sum(1)
    return frequency.amax(1), entropy.exp()


def _several(commonest: Float[Tensor, " heads"], most: float) -> float:
    return (commonest < most - 1e-9).double().mean().item()
