"""Is a map true? Tokens are taken away, or put back, in the map's order (Petsiuk et al. 2018).

    deletion     the score as the tokens that the map counts highest go first; it should fall fast
    insertion    the score as they come first into a row of baselines; it should rise fast

Both as shares of the way from f(baseline) to f(x), averaged over the steps; a map is worth what it
gains on random orders. And the linear reading: what a map says that taking away a random half of
the tokens costs, its sum over them, against what it does cost.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.validate.attribution_maps.scores import Asked
from unweave.validate.bootstrap import BootstrapSettings, mean_interval, ratio_interval


class CurveSettings(BaseModel):
    """Settings of the curves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: PositiveInt = 8
    """Points of a curve, the untouched end left out."""
    random_orders: PositiveInt = 4
    """Random orders that maps are held against."""
    halves: PositiveInt = 8
    """Random halves of the tokens for the linear reading."""
    seed: int = 0
    """Seed of orders and halves."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals over rows."""


class Truth(Record):
    """How true a method's maps are; shares of the way from the baseline to the score."""

    deletion_gain: Interval
    """How much lower the mean of the deletion curve lies than with random orders; 0 is chance."""
    insertion_gain: Interval
    """How much higher the mean of the insertion curve lies than with random orders."""
    linear_fvu: Interval
    """Variance of the cost of losing a random half of the tokens that the map's sum over that
    half leaves unexplained; 1 is as good as knowing nothing, above 1 is worse."""


@torch.no_grad()
def truth(
    asked: Asked, found: Float[Tensor, "rows pos"], settings: CurveSettings | None = None
) -> Truth:
    """Measure one method's maps."""
    settings = settings or CurveSettings()
    generator = torch.Generator().manual_seed(settings.seed)
    chance = [_shuffled_order(asked, generator) for _ in range(settings.random_orders)]
    mine = found[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
    gains = []
    for insert in (False, True):
        random = [_curve(asked, order, insert, settings.steps) for order in chance]
        gain = _curve(asked, mine, insert, settings.steps) - torch.stack(random).mean(0)
        gains.append(gain if insert else -gain)
    deletion, insertion = (_mean(gain, settings.bootstrap) for gain in gains)
    fvu = _linear(asked, found, settings, generator)
    return Truth(deletion_gain=deletion, insertion_gain=insertion, linear_fvu=fvu)


def _shuffled_order(asked: Asked, generator: torch.Generator) -> Int[Tensor, "rows tokens"]:
    rows, length = asked.x.shape[:2]
    return torch.rand(rows, length - 1, generator=generator).argsort(1) + 1


def _curve(asked: Asked, order: Tensor, insert: bool, steps: int) -> Float[Tensor, " rows"]:
    """Mean over the steps of the share of the score that is there."""
    low, high = asked.score(asked.baseline), asked.score(asked.x)
    shares = []
    for step in range(1, steps + 1):
        chosen = order[:, : round(step * order.shape[1] / (steps + 1))]
        mask = torch.zeros(asked.x.shape[:2], dtype=torch.bool).scatter(1, chosen, True)
        shares.append((_with(asked, mask if insert else ~mask) - low) / _apart(high - low))
    return torch.stack(shares).mean(0)


def _with(asked: Asked, kept: Tensor) -> Float[Tensor, " rows"]:
    """The score with these tokens only."""
    return asked.score(torch.where(kept[..., None], asked.x, asked.baseline))


def _apart(gap: Tensor) -> Tensor:
    """A gap to divide by: rows whose score the text hardly moves must not decide everything."""
    return torch.where(gap < 0, -1.0, 1.0) * gap.abs().clamp_min(gap.abs().mean() / 10 + 1e-12)


def _linear(
    asked: Asked, found: Tensor, settings: CurveSettings, generator: torch.Generator
) -> Interval:
    whole = asked.score(asked.x)
    said, cost = [], []
    for _ in range(settings.halves):
        kept = torch.rand(asked.x.shape[:2], generator=generator) < 0.5
        kept[:, 0] = True
        said.append((found * ~kept).sum(1))
        cost.append(whole - _with(asked, kept))
    return _unexplained(torch.stack(said, 1), torch.stack(cost, 1), settings.bootstrap)


def _unexplained(said: Tensor, cost: Tensor, bootstrap: BootstrapSettings) -> Interval:
    apart = (cost - cost.mean()).square().sum(1)
    return _as_interval(
        ratio_interval(_array((said - cost).square().sum(1)), _array(apart), bootstrap)
    )


def _array(values: Tensor) -> Float[np.ndarray, " rows"]:
    return values.double().numpy()


def _mean(values: Tensor, bootstrap: BootstrapSettings) -> Interval:
    return _as_interval(mean_interval(_array(values), bootstrap))


def _as_interval(ends: Sequence[float]) -> Interval:
    value, low, high = ends
    return Interval(value=value, low=low, high=high)
