"""What our own study measured, kept in `measured.json`: the coefficients behind `suggest`.

The file is written by `studies/hyperparameters/analyse.py`; nothing in it was chosen by hand.
"""

import math
from functools import cache
from importlib.resources import files

import numpy as np
from pydantic import BaseModel, ConfigDict

from unweave.training.laws.scaling import Interval, ScalingLaw
from unweave.training.laws.shift import DataShift
from unweave.training.laws.transfer import RateLaw

LAW_WIDTH = 128
"""Width of the vectors that the law of the rate is about."""
Z90 = 1.645
"""Standard deviations on either side of 90 % of a Gaussian."""


class DeadLaw(BaseModel):
    """logit of the share of dead latents = weights . (1, log n/1024, log k/16, log T/65536)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weights: tuple[float, float, float, float]
    """Least squares over all data sets."""
    scatter: float
    """Standard deviation of what it misses, between data sets and runs, in logits."""

    def predict(self, n: float, k: float, tokens: float) -> Interval:
        """The share with a 90 % interval."""
        at = dead_basis(n, k, tokens)
        middle = float(np.dot(self.weights, at))
        low, value, high = (_share(middle + s * Z90 * self.scatter) for s in (-1, 0, 1))
        return Interval(value, low, high)


class L1Law(BaseModel):
    """log L0 = weights . (1, log lambda / sqrt(width)) of ReLU with an L1 penalty.

    Vectors have norm sqrt(width), so that lambda / sqrt(width) is free of units: it is what one
    unit of the penalty is worth beside a vector's length. It is a first guess: at equal values
    data differ in L0 by `scatter`, so the weight is steered while training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    weights: tuple[float, float]
    """Least squares over all data sets."""
    scatter: float
    """Standard deviation of log L0 around it."""
    excess: float
    """Mean of log FVU less the law's for TopK with as many latents active."""
    excess_scatter: float
    """Its standard deviation."""

    def weight(self, l0: float, width: int) -> float:
        """The penalty weight at which so many latents should be active."""
        constant, slope = self.weights
        return math.sqrt(width) * math.exp((math.log(l0) - constant) / slope)


class CEScatter(BaseModel):
    """How a dictionary's rise in CE compares to what truncation and noise of its FVU cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    excess: float
    """Mean of log rise measured - log rise foretold by the geometric mean of the two."""
    scatter: float
    """Its standard deviation."""


class Measured(BaseModel):
    """Everything that `suggest` builds on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    provenance: dict[str, str]
    """Where the numbers come from."""
    law: ScalingLaw
    """FVU on the site the study has most runs of."""
    shift: DataShift
    """How other data differ from it."""
    noise: float
    """Standard deviation in log FVU of a run around a law fitted to its own data."""
    rate: RateLaw
    """Best learning rates."""
    rate_width: float
    """Power of the vectors' width that the best rate goes with, over that of the law's data."""
    rate_scatter: float
    """Standard deviation of log best rate between data sets, the width's part taken out."""
    dead: DeadLaw
    """Dead latents."""
    l1: L1Law
    """Weights of the L1 penalty."""
    ce: CEScatter
    """From reconstruction to CE."""
    k_per_dimension: float
    """Planted features per vector over the TwoNN dimension, geometric mean over worlds."""
    batch: int
    """Vectors per step of the runs behind the law."""
    warmup: float
    """Share of warm-up of those runs."""
    flops_per_second: float
    """Speed of one core of the study's machine: the 95th percentile of runs that shared it."""

    def best_rate(self, n: float, k: float, steps: float, width: int) -> float:
        """The learning rate for a size, a number of steps and a width of the vectors."""
        return self.rate(n, k, steps) * (width / LAW_WIDTH) ** self.rate_width


@cache
def measured() -> Measured:
    """The numbers that ship with unweave."""
    text = files("unweave.training.laws").joinpath("measured.json").read_text(encoding="utf-8")
    return Measured.model_validate_json(text)


def dead_basis(n: float, k: float, tokens: float) -> tuple[float, float, float, float]:
    """What the dead law is linear in."""
    return 1.0, math.log(n / 1024), math.log(k / 16), math.log(tokens / 65_536)


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
