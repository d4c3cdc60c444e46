"""How far other data lie from the law fitted on one site, foretold from what the data are like.

    log FVU = log L(n, k, T) + p + q K + r N

Level p, slope in k and slope in n are first guessed from statistics of the vectors (a regression
over the data sets of the study), then sharpened by a few small runs on the data themselves. All of
it is linear and Gaussian, so that the update is exact and needs no search.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from unweave.errors import UserError
from unweave.training.laws.data import DataStatistics
from unweave.training.laws.scaling import K0, N0, Point, ScalingLaw

RIDGE = 0.1
"""Weight of the pull to zero on a regression's slopes, in units of one data set."""


def features(statistics: DataStatistics) -> dict[str, float]:
    """What of the statistics a regression may use, on scales that make differences comparable."""
    return {
        "tail": float(np.log(max(statistics.tails[2], 1e-4))),
        "participation": float(np.log(statistics.participation / statistics.width)),
        "intrinsic": float(np.log(statistics.intrinsic)),
        "exponent": statistics.spectrum_exponent,
        "kurtosis": float(np.log1p(max(statistics.kurtosis, 0.0))),
    }


class Belief(BaseModel):
    """A Gaussian over (p, q, r)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mean: tuple[float, float, float]
    """The most likely."""
    covariance: tuple[tuple[float, float, float], ...]
    """How sure that is."""

    def at(self, n: float, k: float) -> tuple[float, float]:
        """Mean and variance of log FVU - log L for a size."""
        at = _basis(n, k)
        return float(at @ self.mean), float(at @ np.array(self.covariance) @ at)

    def updated(self, points: Sequence[Point], law: ScalingLaw, noise: float) -> "Belief":
        """The belief after runs on the data, each with noise of this size in log FVU."""
        if not points:
            return self
        design = np.array([_basis(p.n, p.k) for p in points])
        seen = np.array([np.log(p.fvu / law(p.n, p.k, p.tokens)) for p in points])
        covariance, mean = np.array(self.covariance), np.array(self.mean)
        gain = (
            covariance
            @ design.T
            @ np.linalg.inv(design @ covariance @ design.T + noise**2 * np.eye(len(points)))
        )
        mean = mean + gain @ (seen - design @ mean)
        return _belief(mean, covariance - gain @ design @ covariance)


class DataShift(BaseModel):
    """The regression from statistics to (p, q, r)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    used: tuple[str, ...]
    """Features that are used."""
    centres: tuple[float, ...]
    """Their means over the data sets."""
    weights: tuple[tuple[float, ...], ...]
    """For each of p, q, r: the mean over data sets, then one slope a feature."""
    covariance: tuple[tuple[float, float, float], ...]
    """Covariance of what the regression missed on each data set when it was left out."""
    missed: float
    """Root mean square of that error in log FVU, over all cells."""
    missed_without: float
    """The same with no feature at all: the mean shift of the other data sets."""

    def prior(self, statistics: DataStatistics) -> Belief:
        """What to expect of data with such statistics."""
        mean = np.array(self.weights) @ self._row(features(statistics))
        return _belief(mean, np.array(self.covariance))

    def _row(self, found: Mapping[str, float]) -> np.ndarray:
        offsets = [found[u] - c for u, c in zip(self.used, self.centres, strict=True)]
        return np.array([1.0, *offsets])


def fit_shift(
    data: Mapping[str, tuple[DataStatistics, Sequence[Point]]], law: ScalingLaw
) -> DataShift:
    """Fit the regression over data sets; of up to two features those that err least on data sets
    left out.

    Raises:
        UserError: fewer than four data sets.
    """
    if len(data) < 4:
        raise UserError(f"{len(data)} data sets are too few to say how FVU depends on them: give 4")
    found = [features(statistics) for statistics, _ in data.values()]
    shifts = np.array([_shift(points, law) for _, points in data.values()])
    cells = [np.array([_basis(p.n, p.k) for p in points]) for _, points in data.values()]
    options = [(), *((a,) for a in found[0]), *combinations(found[0], 2)]
    errors = {used: _left_out(found, shifts, used) for used in options}

    def size(used: tuple[str, ...]) -> float:
        misses = [at @ miss for at, miss in zip(cells, errors[used], strict=True)]
        return float(np.sqrt(np.mean(np.concatenate(misses) ** 2)))

    used = min(options, key=size)
    centres, weights = _regress(found, shifts, used)
    spread = errors[used].T @ errors[used] / len(data) + 1e-4 * np.eye(3)
    return DataShift(
        used=used,
        centres=centres,
        weights=tuple(tuple(map(float, row)) for row in weights),
        covariance=_rows(spread),
        missed=size(used),
        missed_without=size(()),
    )


def _basis(n: float, k: float) -> Float[np.ndarray, " 3"]:
    return np.array([1.0, np.log(k / K0), np.log(n / N0)])


def _shift(points: Sequence[Point], law: ScalingLaw) -> np.ndarray:
    """(p, q, r) of one data set, slopes pulled weakly to zero."""
    vague = _belief(np.zeros(3), np.diag([4.0, 0.25, 0.25]))
    return np.array(vague.updated(points, law, 0.03).mean)


def _regress(
    found: Sequence[Mapping[str, float]], shifts: np.ndarray, used: tuple[str, ...]
) -> tuple[tuple[float, ...], np.ndarray]:
    columns = np.array([[row[name] for name in used] for row in found]).reshape(len(found), -1)
    centres = columns.mean(0)
    design = columns - centres
    mean = shifts.mean(0)
    square = design.T @ design + RIDGE * np.eye(len(used))
    slopes = np.linalg.solve(square, design.T @ (shifts - mean)) if used else np.zeros((0, 3))
    return tuple(map(float, centres)), np.vstack([mean, slopes]).T


def _left_out(
    found: Sequence[Mapping[str, float]], shifts: np.ndarray, used: tuple[str, ...]
) -> np.ndarray:
    misses = []
    for out in range(len(found)):
        kept = [place for place in range(len(found)) if place != out]
        centres, weights = _regress([found[place] for place in kept], shifts[kept], used)
        offsets = [found[out][name] - c for name, c in zip(used, centres, strict=True)]
        misses.append(shifts[out] - weights @ np.array([1.0, *offsets]))
    return np.array(misses)


def _belief(mean: np.ndarray, covariance: np.ndarray) -> Belief:
    p, q, r = map(float, mean)
    return Belief(mean=(p, q, r), covariance=_rows(covariance))


def _rows(matrix: np.ndarray) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(a), float(b), float(c)) for a, b, c in matrix)
