"""How sure a mean is: percentile intervals from resampling (Efron 1979), seeded."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field


class BootstrapSettings(BaseModel):
    """Settings of the bootstrap."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    resamples: int = Field(default=400, ge=2)
    """Number of resamples."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Share of the resamples inside the interval."""
    seed: int = 0
    """Seed of the resamples."""


class Interval(NamedTuple):
    """A number and the interval it would stay in, were the rows (or latents) drawn anew."""

    value: float
    """The number itself."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def resample_counts(items: int, settings: BootstrapSettings) -> Int[np.ndarray, "resamples items"]:
    """How often each item is drawn in each resample of the same size, with replacement."""
    random = np.random.default_rng(settings.seed)
    drawn = random.integers(0, items, size=(settings.resamples, items), dtype=np.int32)
    counts = np.empty((settings.resamples, items), dtype=np.int64)
    for resample, items_drawn in enumerate(drawn):
        counts[resample] = np.bincount(items_drawn, minlength=items)
    return counts


def mean_interval(
    values: Float[np.ndarray, " items"],
    settings: BootstrapSettings | None = None,
    *,
    weights: Float[np.ndarray, " items"] | None = None,
) -> Interval:
    """The (weighted) mean with its interval; what the items are, rows or latents, is resampled.

    >>> mean_interval(np.array([2.0, 2.0, 2.0]))
    Interval(value=2.0, low=2.0, high=2.0)
    """
    weights = np.ones(len(values)) if weights is None else weights
    return ratio_interval(values * weights, weights, settings)


def ratio_interval(
    numerator: Float[np.ndarray, " items"],
    denominator: Float[np.ndarray, " items"],
    settings: BootstrapSettings | None = None,
) -> Interval:
    """Ratio of two sums over the same items with its interval; nan where there is nothing."""
    settings = settings or BootstrapSettings()
    if not len(numerator) or not np.any(denominator):
        return Interval(np.nan, np.nan, np.nan)
    return intervals(numerator[:, None], denominator[:, None], settings)[0]


def intervals(
    numerators: Float[np.ndarray, "items metrics"],
    denominators: Float[np.ndarray, "items metrics"],
    settings: BootstrapSettings,
) -> list[Interval]:
    """The ratio of sums for every column, all from the same resamples."""
    counts = resample_counts(len(numerators), settings).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = numerators.sum(axis=0) / denominators.sum(axis=0)
        # Not a BLAS product: its rounding would depend on the number of threads.
        sums = [np.einsum("ri,im->rm", counts, each) for each in (numerators, denominators)]
        drawn = sums[0] / sums[1]
    tail = (1 - settings.level) / 2
    found = []
    for column in range(drawn.shape[1]):
        # A resample may have drawn nothing that counts; it says nothing, so it is left out.
        finite = drawn[np.isfinite(drawn[:, column]), column]
        low, high = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (np.nan, np.nan)
        found.append(Interval(float(value[column]), float(low), float(high)))
    return found
