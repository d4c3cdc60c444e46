"""The n-th largest of numbers that many processes hold, exactly, without sending the numbers.

Positive floats have the order of their bit patterns. A histogram of the leading bits, added up over
the processes, says in which bin the n-th largest lies; the next bits of those in that bin say in
which bin of it, and so on: three rounds of 2048 counts for float32, six for float64, whatever the
number of candidates.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.training.parallel.group import Group

_BITS = 11
_WHOLE = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}


def nth_largest(
    values: Float[Tensor, " values"], n: int, group: Group
) -> Float[Tensor, " smallest=1"]:
    """The n-th largest of everybody's positive values; there must be n of them.

    Every process gets the same answer.
    """
    kind, width = _WHOLE[values.dtype]
    bits = values.view(kind).to(torch.int64)
    found, left, low = 0, n, width
    while low > 0:
        high, low = low, max(0, low - _BITS)
        own = (bits >> low) & ((1 << (high - low)) - 1)
        counts = group.sum(torch.bincount(own, minlength=1 << (high - low)))
        bin_, left = _bin_of(counts, left)
        found |= bin_ << low
        bits = bits[own == bin_]
    return torch.tensor([found], dtype=kind, device=values.device).view(values.dtype)


def _bin_of(counts: Int[Tensor, " bins"], n: int) -> tuple[int, int]:
    """The bin of the n-th largest, and the how-manieth largest it is in there."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, n))
    before = int(above[place - 1]) if place else 0
    return len(counts) - 1 - place, n - before
