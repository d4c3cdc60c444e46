"""PCA and SVD of activations, SVD of weights: the best linear codes, and those of the network.

Among all codes that are linear in x and use the same k directions for every row, the first k
principal directions have the least squared error (Eckart & Young 1936). Keeping the k largest
coordinates row by row, as here with a `k`, is the sparse reading of the same basis.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.baselines.linear import Coefficients, read_by


class Principal(NamedTuple):
    """Directions of a cloud of vectors, those with most variance first."""

    mean: Float[Tensor, " d"]
    directions: Float[Tensor, "d d"]
    """Orthonormal rows."""
    variance: Float[Tensor, " d"]
    """Along each, never negative."""


def principal_directions(x: Float[Tensor, "vectors d"]) -> Principal:
    """Mean, principal directions and the variance along each."""
    mean = x.mean(0)
    found = torch.linalg.eigh((x - mean).T @ (x - mean))
    variance = found.eigenvalues.flip(0).clamp_min(0) / max(len(x), 1)
    return Principal(mean, found.eigenvectors.T.flip(0).contiguous(), variance)


def pca(
    x: Float[Tensor, "vectors d"], n_latents: int | None = None, *, k: int | None = None
) -> Coefficients:
    """The first principal directions around the mean; of their coordinates the k largest."""
    found = principal_directions(x)
    rows = found.directions[:n_latents]
    return Coefficients(read_by(rows, found.mean), rows, b_dec=found.mean, k=k)


def svd(
    x: Float[Tensor, "vectors d"], n_latents: int | None = None, *, k: int | None = None
) -> Coefficients:
    """The first right singular vectors of the vectors themselves: PCA that leaves the mean in."""
    rows = torch.linalg.eigh(x.T @ x).eigenvectors.T.flip(0).contiguous()[:n_latents]
    return Coefficients(read_by(rows, torch.zeros_like(rows[0])), rows, k=k)


def weight_svd(
    W: Float[Tensor, "vectors d"],
    n_latents: int | None = None,
    *,
    k: int | None = None,
    b_dec: Float[Tensor, " d"] | None = None,
) -> Coefficients:
    """Right singular vectors of a weight matrix whose rows lie in the site's space.

    With `W_in` these are the directions that an MLP reads most, with `W_out` those that it writes
    most. There are no more than the matrix has rows. Weights know no mean: `b_dec` is it, or zero.
    """
    rows = torch.linalg.svd(W.float(), full_matrices=False).Vh[:n_latents].contiguous()
    offset = torch.zeros_like(rows[0]) if b_dec is None else b_dec
    return Coefficients(read_by(rows, offset), rows, b_dec=offset, k=k)
