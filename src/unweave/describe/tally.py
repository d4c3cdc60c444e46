"""How often each latent fired at each key, on the rows for explaining."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from unweave.describe.contexts import RuleKind, context_keys, universe
from unweave.describe.evidence import Firings
from unweave.describe.vocabulary import Vocabulary

DENSE_UNIVERSE = 40
"""Up to this many keys, keys at which a latent never fired are counted too (and may be listed)."""


def sum_by(
    index: Integer[np.ndarray, " items"],
    weight: Float[np.ndarray, " items"] | Integer[np.ndarray, " items"],
    size: int,
) -> Float[np.ndarray, " size"]:
    """Sum of the weights of the items of each index 0 .. size-1, as floats even if none."""
    # bincount forgets that weights are floats when there are none.
    return np.bincount(index, weights=weight, minlength=size).astype(np.float64)


def stable_order(code: Integer[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """What `np.argsort(code, kind="stable")` gives for codes >= 0, five times faster.

    numpy sorts numbers with vector instructions but not their order, so the order goes along in
    the low digits.
    """
    size = len(code)
    if not size:
        return np.zeros(0, dtype=np.int64)
    assert int(code.max()) < 2**63 // size - 1, "codes too large to pack"
    return np.sort(code.astype(np.int64) * size + np.arange(size)) % size


@dataclass(frozen=True)
class Tally:
    """Counts for pairs of latent and key, ordered by latent."""

    latent: Int[np.ndarray, " pairs"]
    key: Int[np.ndarray, " pairs"]
    fired: Int[np.ndarray, " pairs"]
    """How many of the key's places the latent fired at."""
    total: Int[np.ndarray, " pairs"]
    """How many places have the key."""
    value: Float[np.ndarray, " pairs"]
    """Sum of the activations there."""
    universe: int
    """How many keys there could be."""


def tally(
    kind: RuleKind,
    tokens: Integer[np.ndarray, "rows pos"],
    firings: Firings,
    n_latents: int,
    vocabulary: Vocabulary,
    *,
    minimum_total: int,
) -> Tally:
    """Count firings by latent and key, for keys that the text has at least `minimum_total` times.

    Costs one sort of the firings.
    """
    keys = context_keys(kind, tokens, vocabulary)
    present, inverse, total = np.unique(keys[:, 1:], return_inverse=True, return_counts=True)
    key_at = np.full(keys.shape, -1)
    key_at[:, 1:] = inverse.reshape(keys[:, 1:].shape)
    key = key_at[firings.row, firings.position]
    size = universe(kind, vocabulary.size)
    if size <= DENSE_UNIVERSE:
        cell = firings.latent * len(present) + key
        fired = np.bincount(cell, minlength=n_latents * len(present))
        value = sum_by(cell, firings.value, n_latents * len(present))
        pair = np.arange(n_latents * len(present))
    else:
        often = total[key] >= minimum_total
        pair, fired, value = _count(
            (firings.latent * len(present) + key)[often], firings.value[often]
        )
    latent, index = np.divmod(pair, max(len(present), 1))
    return Tally(latent, present[index], fired, total[index], value, size)


def _count(
    cell: Int[np.ndarray, " firings"], value: Float[np.ndarray, " firings"]
) -> tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """The cells that occur, in order, how often, and the sum of the values of each."""
    if not len(cell):
        return cell, cell, value
    order = stable_order(cell)
    ordered = cell[order]
    begin = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    fired = np.diff(np.r_[begin, len(ordered)])
    return ordered[begin], fired, np.add.reduceat(value[order], begin)
