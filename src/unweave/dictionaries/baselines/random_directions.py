"""Random directions: the dictionary that knows nothing, with the best code that it allows.

Coded by OMP rather than by its own projections, because the control is to be beaten for its
directions and not for a poor encoder.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.coders.refit import unit_rows


def random_directions(
    x: Float[Tensor, "vectors d"], n_latents: int, *, k: int, seed: int, signed: bool = False
) -> FixedDictionary:
    """Unit rows drawn evenly from the sphere, around the mean of the vectors."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n_latents, x.shape[1], generator=generator).to(x)
    omp = partial(orthogonal_matching_pursuit, k=k, signed=signed)
    return FixedDictionary(unit_rows(rows)[1], omp, b_dec=x.mean(0))
