"""How well effects were predicted: sign, rank and size, pooled with intervals over latents.

    sign      share of pairs (latent, row) where both have the same sign
    rank      Spearman's correlation over all pairs
    slope     of the least squares line of measured on predicted
    r2        squared correlation of measured and predicted: 1 says that size is predicted up to
              the slope and a constant

Resampled are latents, with all their rows.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from unweave.validate.attribution_maps.ranks import spearman
from unweave.validate.bootstrap import BootstrapSettings, Interval


class Agreement(NamedTuple):
    """Predicted beside measured."""

    sign: Interval
    rank: Interval
    slope: Interval
    r2: Interval
    rank_per_latent: Interval
    """Mean over latents of Spearman's correlation over their rows."""


def agreement(
    predicted: Float[np.ndarray, " pairs"],
    measured: Float[np.ndarray, " pairs"],
    latent: Int[np.ndarray, " pairs"],
    settings: BootstrapSettings | None = None,
) -> Agreement:
    """All of them; a part that says the same of everything has no rank and no line (nan)."""
    settings = settings or BootstrapSettings(resamples=200)
    groups = [np.flatnonzero(latent == each) for each in np.unique(latent)]
    own = np.array([_rank(predicted[g], measured[g]) for g in groups])
    predicted, measured = predicted.astype(np.float64), measured.astype(np.float64)
    random = np.random.default_rng(settings.seed)
    value, drawn = _all(predicted, measured, own), []
    for _ in range(settings.resamples):
        picked = random.integers(0, len(groups), len(groups))
        at = np.concatenate([groups[each] for each in picked])
        drawn.append(_all(predicted[at], measured[at], own[picked]))
    tail = (1 - settings.level) / 2
    found = []
    for column, number in zip(np.array(drawn).T, value, strict=True):
        finite = column[np.isfinite(column)]
        ends = np.quantile(finite, [tail, 1 - tail]) if len(finite) else (np.nan, np.nan)
        found.append(Interval(float(number), float(ends[0]), float(ends[1])))
    return Agreement(*found)


def _rank(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3:
        return float("nan")
    return spearman(*(torch.from_numpy(side.astype(np.float64))[None] for side in (x, y))).item()


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def _all(p: np.ndarray, m: np.ndarray, own: np.ndarray) -> tuple[float, ...]:
    r = _pearson(p, m)
    slope = float(r * m.std() / p.std()) if p.std() > 0 else float("nan")
    mean = float(np.nanmean(own)) if np.isfinite(own).any() else float("nan")
    return float((np.sign(p) == np.sign(m)).mean()), _rank(p, m), slope, r**2, mean
