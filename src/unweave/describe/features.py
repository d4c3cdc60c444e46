"""The table of features: how often and how strongly each latent fires, and where to look at it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from unweave.describe.evidence import Firings, PartEvidence
from unweave.describe.tally import stable_order, sum_by

TOP_EXAMPLES = 10
BANDS = 5
PER_BAND = 2
BINS = 32
PER_ROW = 2
"""Examples prefer at most this many firings of one row, so that one text does not fill a page."""


def feature_table(evidence: PartEvidence) -> dict[str, np.ndarray]:
    """Statistics of every latent over all rows, and examples from the rows for explaining.

    Keys and types are those of `features/<part>.safetensors`: count int64[n], frequency f32[n]
    (of the tokens that are not at position 0), mean_active and max_active f32[n], histogram
    int32[n, 32] over histogram_edges f32[33], example_position int64[n, 20] (flat index into the
    tokens, -1 for none), example_value f32[n, 20], example_band int8[20] (0 top, 1 to 5 down the
    quantiles of what is left).
    """
    rows, positions = evidence.tokens.shape
    _, _, latent, value = evidence.firings
    n = evidence.n_latents
    count = np.bincount(latent, minlength=n).astype(np.int64)
    total = sum_by(latent, value, n)
    highest = np.zeros(n)
    np.maximum.at(highest, latent, value)
    histogram, edges = _histogram(latent, value, n)
    examples = _examples(evidence)
    return {
        "count": count,
        "frequency": (count / max(rows * (positions - 1), 1)).astype(np.float32),
        "mean_active": (total / np.maximum(count, 1)).astype(np.float32),
        "max_active": highest.astype(np.float32),
        "histogram": histogram,
        "histogram_edges": edges,
        "example_position": examples.position,
        "example_value": examples.value,
        "example_band": example_bands(),
    }


def example_bands() -> Int[np.ndarray, " examples"]:
    """Band of each example column: 0 for the strongest, then 1 to 5 down the quantiles."""
    return np.repeat(np.arange(BANDS + 1), [TOP_EXAMPLES] + [PER_BAND] * BANDS).astype(np.int8)


def _histogram(
    latent: Integer[np.ndarray, " firings"], value: Float[np.ndarray, " firings"], n: int
) -> tuple[Int[np.ndarray, "n bins"], Float[np.ndarray, " edges"]]:
    low, high = (value.min(), value.max()) if len(value) else (1.0, 2.0)
    if high <= low:
        low, high = low / 2, low * 2
    edges = np.geomspace(low, high, BINS + 1)
    step = (np.log(high) - np.log(low)) / BINS
    position = np.clip(((np.log(value) - np.log(low)) / step).astype(np.int64), 0, BINS - 1)
    counts = np.bincount(latent * BINS + position, minlength=n * BINS)
    return counts.reshape(n, BINS).astype(np.int32), edges.astype(np.float32)


class _Examples(NamedTuple):
    position: Int[np.ndarray, "n examples"]
    value: Float[np.ndarray, "n examples"]


def _strongest_first(firings: Firings) -> Int[np.ndarray, " firings"]:
    """Order by latent, then by falling value; equal values stay in the order of the text."""
    bits = firings.value.astype(np.float32).view(np.uint32).astype(np.int64)
    by_value = stable_order(0xFFFFFFFF - bits)
    return by_value[stable_order(firings.latent[by_value])]


def _rank(group: Integer[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """Rank of each item within its run of equal groups (groups come together)."""
    first = np.r_[True, group[1:] != group[:-1]] if len(group) else np.zeros(0, dtype=bool)
    begin = np.flatnonzero(first)
    return np.arange(len(group)) - np.repeat(begin, np.diff(np.r_[begin, len(group)]))


class _Order(NamedTuple):
    firing: Int[np.ndarray, " firings"]
    crowded: Int[np.ndarray, " firings"]


def _diverse(firings: Firings, rows: int) -> _Order:
    """Strongest first within each latent, with what exceeds `PER_ROW` of a row moved behind."""
    order = _strongest_first(firings)
    latent, row = firings.latent[order], firings.row[order]
    by_row = stable_order(latent * rows + row)
    crowded = np.empty(len(order), dtype=np.int64)
    crowded[by_row] = _rank((latent * rows + row)[by_row]) >= PER_ROW
    behind = stable_order(latent * 2 + crowded)
    return _Order(order[behind], crowded[behind])


def _examples(evidence: PartEvidence) -> _Examples:
    """The ten strongest firings, then the first of each tenth of what is left, two to a band.

    The crowded firings fill up the strongest ten only where there is nothing else to show.
    """
    firings, positions = evidence.explain, evidence.tokens.shape[1]
    n, slots = evidence.n_latents, BANDS * PER_BAND
    order, crowded = _diverse(firings, evidence.explain_rows)
    count = np.bincount(firings.latent, minlength=n)
    spread = count - sum_by(firings.latent[order], crowded, n)
    begin = np.cumsum(count) - count
    top = np.broadcast_to(np.arange(TOP_EXAMPLES), (n, TOP_EXAMPLES))
    left = np.maximum(spread.astype(np.int64) - TOP_EXAMPLES, 0)[:, None]
    slot = np.arange(slots)[None, :]
    rank = -(-slot * left // slots)
    filled = (rank < left) & (rank * slots // np.maximum(left, 1) == slot)
    rank = np.hstack([top, TOP_EXAMPLES + rank])
    filled = np.hstack([top < count[:, None], filled])
    chosen = order[np.where(filled, begin[:, None] + rank, 0)] if len(order) else rank * 0
    value = np.where(filled, firings.value[chosen] if len(order) else 0.0, 0.0)
    flat = firings.row * positions + firings.position
    position = np.where(filled, flat[chosen] if len(order) else -1, -1)
    top_value, top_position = value[:, :TOP_EXAMPLES].copy(), position[:, :TOP_EXAMPLES].copy()
    falling = np.argsort(-top_value, axis=1, kind="stable")
    value[:, :TOP_EXAMPLES] = np.take_along_axis(top_value, falling, axis=1)
    position[:, :TOP_EXAMPLES] = np.take_along_axis(top_position, falling, axis=1)
    return _Examples(position.astype(np.int64), value.astype(np.float32))
