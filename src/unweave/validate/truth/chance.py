"""What a dictionary that knows nothing would score: recovery never stands without it.

In few dimensions, or with many latents, some random direction is always close to some feature:
MMCS of a random dictionary is 0.35 for 256 latents in 64 dimensions, 0.70 for 80 in ten and 0.93
for 10 in two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.validate.recovery import Recovery, measure_recovery


class Compared(NamedTuple):
    """A recovery and what chance would have given."""

    found: Recovery
    """Of the dictionary."""
    chance: Recovery
    """Of its random twin."""


def random_directions_of(coder: Coder, *, seed: int) -> FixedDictionary:
    """The same codes written along random directions of the same lengths.

    As many latents fire, in the same rows and as strongly: only the directions are lost.
    """
    written = coder.directions()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(written.shape, generator=generator).to(written)
    rows = F.normalize(drawn, dim=1) * written.norm(dim=1, keepdim=True)
    return FixedDictionary(rows, lambda x, _: coder.encode(x))


def recovery_beside_chance(
    coder: Coder,
    directions: Float[Tensor, "features d"],
    x: Float[Tensor, "rows d"],
    truth: SparseCode,
    *,
    parents: Int[Tensor, " features"] | None = None,
    seed: int = 0,
) -> Compared:
    """Hold a coder and its random twin to planted directions (see `measure_recovery`)."""
    twin = random_directions_of(coder, seed=seed)
    found, chance = (
        measure_recovery(one, directions, x, truth, parents=parents) for one in (coder, twin)
    )
    return Compared(found, chance)
