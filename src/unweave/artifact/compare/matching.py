"""Features of two artifacts matched by what they write.

Two features match where each is the other's nearest by the cosine of their decoder rows. How close
is close depends on the width: the same is done with the second artifact's coordinates shuffled, and
what matches then is chance.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

ROWS_AT_ONCE = 1024
"""Rows whose cosines with all others exist at once."""


def nearest_both_ways(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """For each row of `a`, the row of `b` that is its nearest and whose nearest it is, or -1.

    The second tensor holds the cosines to the nearest, mutual or not.
    """
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    forth, cosine = _nearest(a, b)
    back, _ = _nearest(b, a)
    mutual: Bool[Tensor, " n"] = back[forth] == torch.arange(len(a))
    return forth.masked_fill(~mutual, -1), cosine


def shuffled_coordinates(b: Float[Tensor, "m d"], *, seed: int) -> Float[Tensor, "m d"]:
    """The same rows, as long, with their coordinates dealt out anew: pointing anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return b[:, torch.randperm(b.shape[1], generator=generator)]


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    best = [(rows @ b.T).max(1) for rows in a.split(ROWS_AT_ONCE)]
    return torch.cat([m.indices for m in best]), torch.cat([m.values for m in best])
