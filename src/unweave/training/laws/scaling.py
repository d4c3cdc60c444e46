"""How well a dictionary of a given size does: a law L(n, k, T) of the FVU, fitted to runs.

    L = [exp(a + b_k K + b_n N + g K N) + exp(z + h K)] * (1 + exp(c + e (s N - u K - log T/T0)))

    N = log n/N0,  K = log k/K0

The bracket is the form of Gao et al. (2024, 2406.04093): a power law in the number of latents n at
each k, plus what no number of latents removes. The last factor is ours: a run of T vectors is above
the converged one by a share C (T k^u / n^s)^-e, so that tokens to convergence grow as n^s (Gao:
n^0.6 to n^0.65). Of six forms tried in `studies/hyperparameters` this one foretold the FVU of 2048
latents best from at most 1024; added to the bracket instead, or without k, the term does worse.

Residuals are taken in log L with a loss that outliers cannot own. A weak pull towards `CENTRE`
settles coefficients on which the runs say nothing, such as the token term of runs of one length.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt

from unweave.errors import UserError

N0, K0, T0 = 1024, 16, 65_536
"""Where the logarithms of the law are zero."""

CENTRE = {
    "a": -2.0, "b_n": -0.15, "b_k": -0.5, "g": 0.0, "z": -4.0, "h": -0.5, "c": -1.5, "s": 0.6,
    "u": 0.0, "e": 0.6,
}  # fmt: skip
"""Coefficients that the fit is weakly pulled to."""
SPREAD = {
    "a": 2.0, "b_n": 0.3, "b_k": 0.5, "g": 0.2, "z": 2.0, "h": 0.5, "c": 1.5, "s": 0.5,
    "u": 0.5, "e": 0.3,
}  # fmt: skip
"""How far each may lie from there before it costs as much as a residual of `PULL` log units."""
PULL = 0.01
LOW = {
    "a": -15, "b_n": -3, "b_k": -4, "g": -1, "z": -15, "h": -4, "c": -10, "s": -2, "u": -3,
    "e": 0.02,
}  # fmt: skip
HIGH = {
    "a": 5, "b_n": 0.0, "b_k": 1.0, "g": 1, "z": 3, "h": 1.0, "c": 3, "s": 4, "u": 3, "e": 3,
}  # fmt: skip
NAMES = tuple(CENTRE)


class Point(NamedTuple):
    """One run, at the best learning rate that was found for it."""

    n: int
    """Latents."""
    k: float
    """Active latents per vector."""
    tokens: float
    """Vectors trained on."""
    fvu: float
    """Share of the variance left on held-out vectors."""


class FitSettings(BaseModel):
    """How the law is fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    starts: PositiveInt = 8
    """Starting points, the first one `CENTRE`, the others drawn around it."""
    resamples: PositiveInt = 60
    """Bootstrap over runs: fits to as many runs drawn with replacement."""
    level: float = 0.9
    """Share of the resamples inside an interval."""
    robust: float = 0.05
    """Residuals in log L beyond this count linearly instead of squared."""
    seed: int = 0
    """Seed of starts and resamples."""


class Interval(NamedTuple):
    """A prediction."""

    value: float
    """The law's own."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


class ScalingLaw(BaseModel):
    """A fitted law with what resampling the runs does to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    coefficients: dict[str, float]
    """By the names in the formula above."""
    resampled: tuple[tuple[float, ...], ...]
    """Coefficients of every resample, in the order of `NAMES`."""
    residuals: tuple[float, ...]
    """log measured - log predicted of the runs, inflated for the coefficients they paid for."""
    level: float = 0.9
    """Share of predictions that should lie inside an interval."""

    def __call__(self, n: float, k: float, tokens: float) -> float:
        """The FVU that the law predicts."""
        return float(np.exp(_log_law(self._vector, _logs(n, k, tokens))))

    def predict(self, n: float, k: float, tokens: float) -> Interval:
        """A new run's FVU, with an interval that covers the fit's and the runs' own scatter."""
        return interval(self.draws(n, k, tokens), self.residuals, self(n, k, tokens), self.level)

    def draws(self, n: float, k: float, tokens: float) -> Float[np.ndarray, " resamples"]:
        """log FVU under every resample."""
        logs = _logs(n, k, tokens)
        return np.array([_log_law(np.array(row), logs) for row in self.resampled])

    def spread(self, name: str) -> Interval:
        """A coefficient with its bootstrap interval."""
        column = np.array([row[NAMES.index(name)] for row in self.resampled])
        low, high = np.quantile(column, [(1 - self.level) / 2, (1 + self.level) / 2])
        return Interval(self.coefficients[name], float(low), float(high))

    @cached_property
    def _vector(self) -> Float[np.ndarray, " coefficients"]:
        return np.array([self.coefficients[name] for name in NAMES])


def fit_scaling(points: Sequence[Point], settings: FitSettings | None = None) -> ScalingLaw:
    """Fit the law to runs and to resamples of them; deterministic by the settings' seed.

    Raises:
        UserError: fewer than 6 runs, a run without a usable FVU, or no scipy.
    """
    settings = settings or FitSettings()
    if len(points) < 6:
        raise UserError(f"{len(points)} runs are too few to fit a law of scaling: give 6 or more")
    if bad := [point for point in points if not 0 < point.fvu < float("inf")]:
        raise UserError(f"A run has an FVU of {bad[0].fvu}, which has no logarithm: leave it out")
    random = np.random.default_rng(settings.seed)
    logs = np.array([_logs(p.n, p.k, p.tokens) for p in points])
    target = np.log([p.fvu for p in points])
    centre, spread = np.array([*CENTRE.values()]), np.array([*SPREAD.values()])
    drawn = random.standard_normal((settings.starts - 1, len(NAMES)))
    starts = [centre, *(centre + spread * drawn)]
    solve = _solver(settings)
    best = min((solve(logs, target, start) for start in starts), key=lambda found: found[1])[0]
    resampled = []
    for _ in range(settings.resamples):
        again = random.integers(0, len(points), len(points))
        resampled.append(tuple(map(float, solve(logs[again], target[again], best)[0])))
    residual = target - _log_law(best, logs)
    inflate = np.sqrt(len(points) / max(1, len(points) - len(NAMES)))
    return ScalingLaw(
        coefficients=dict(zip(NAMES, map(float, best), strict=True)),
        resampled=tuple(resampled),
        residuals=tuple(map(float, residual * inflate)),
        level=settings.level,
    )


def interval(
    draws: Float[np.ndarray, " resamples"],
    residuals: Sequence[float],
    value: float,
    level: float,
) -> Interval:
    """Quantiles of every draw of the law plus every residual, all in logs."""
    spread = (draws[:, None] + np.asarray(residuals)[None, :]).ravel()
    low, high = np.exp(np.quantile(spread, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(value, float(min(low, value)), float(max(high, value)))


def optimizer() -> ModuleType:
    """`scipy.optimize`, which comes with the extra sweep.

    Raises:
        UserError: it is not installed.
    """
    try:
        from scipy import optimize
    except ImportError as error:
        raise UserError(
            "Fitting a law needs scipy; install it with: pip install 'unweave[sweep]'"
        ) from error
    return optimize


def _solver(settings: FitSettings) -> Callable[..., tuple[np.ndarray, float]]:
    optimize = optimizer()
    centre, spread = np.array([*CENTRE.values()]), np.array([*SPREAD.values()])
    low, high = np.array([*LOW.values()], float), np.array([*HIGH.values()], float)

    def solve(logs: np.ndarray, target: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
        def residuals(x: np.ndarray) -> np.ndarray:
            return np.concatenate([_log_law(x, logs) - target, PULL * (x - centre) / spread])

        inside = np.clip(start, low + 1e-6, high - 1e-6)
        found = optimize.least_squares(
            residuals, inside, bounds=(low, high), loss="soft_l1", f_scale=settings.robust,
            max_nfev=300,
        )  # fmt: skip
        return found.x, float(found.cost)

    return solve


def _logs(n: float, k: float, tokens: float) -> Float[np.ndarray, " 3"]:
    return np.log([n / N0, k / K0, tokens / T0])


def _log_law(coefficients: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """log L at points given as rows of `_logs`."""
    a, b_n, b_k, g, z, h, c, s, u, e = coefficients
    n, k, tokens = logs[..., 0], logs[..., 1], logs[..., 2]
    reducible = a + b_k * k + b_n * n + g * k * n
    converged = np.logaddexp(reducible, z + h * k)
    return np.asarray(converged + np.logaddexp(0.0, c + e * (s * n - u * k - tokens)))
