"""Where decoder rows may start: data, its subspace or clusters, ITDA's atoms, an older dictionary.

A random direction in a space of which the data fills a part is born dead: attention outputs hold
99 % of their variance in about 60 % of their dimensions, and starting within those brings dead
latents from 87 % to under 1 % (2508.16929). Every function here returns unit rows `[latents, d]`
for a dictionary around the mean of the vectors, and depends on nothing but its arguments.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.baselines.kmeans import cluster_centres
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.code import Coder
from unweave.dictionaries.coders.itda import ITDASettings, itda
from unweave.errors import UserError


@torch.no_grad()
def data_rows(
    x: Float[Tensor, "vectors d"], latents: int, *, seed: int
) -> Float[Tensor, "latents d"]:
    """Directions of random vectors from the mean; each vector once while there are enough."""
    g = torch.Generator().manual_seed(seed)
    if latents <= len(x):
        drawn = torch.randperm(len(x), generator=g)[:latents]
    else:
        drawn = torch.randint(len(x), (latents,), generator=g)
    return _unit(x[drawn.to(x.device)] - x.mean(0), seed)


@torch.no_grad()
def subspace_rows(
    x: Float[Tensor, "vectors d"], latents: int, *, seed: int, variance: float = 0.99
) -> Float[Tensor, "latents d"]:
    """Random directions in the span of the fewest principal directions with so much variance."""
    if not 0 < variance <= 1:
        raise UserError(f"the share of variance to start within is in (0, 1]; got {variance}")
    found = principal_directions(x)
    held = found.variance.cumsum(0) / found.variance.sum().clamp_min(1e-30)
    rank = min(int((held < variance).sum()) + 1, len(held))
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(latents, rank, generator=g).to(x)
    return _unit(mixed @ found.directions[:rank], seed)


@torch.no_grad()
def cluster_rows(
    x: Float[Tensor, "vectors d"], latents: int, *, seed: int, steps: int = 10
) -> Float[Tensor, "latents d"]:
    """Directions of the centres of as many clusters (k-means) from the mean."""
    return _unit(cluster_centres(x, latents, seed=seed, steps=steps) - x.mean(0), seed)


@torch.no_grad()
def atom_rows(
    x: Float[Tensor, "vectors d"], latents: int, *, seed: int, k: int = 16, tau: float = 0.1
) -> Float[Tensor, "latents d"]:
    """Vectors, seen from the mean, that k atoms taken before do not reconstruct to within tau.

    One pass in random order; where it takes fewer than asked for, random vectors follow.
    """
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=g).to(x.device)
    settings = ITDASettings(k=k, tau=tau, n_latents=latents, sweeps=1, signed=False)
    return _filled(itda(x[order] - x.mean(0), settings).W_dec, x, latents, seed)


@torch.no_grad()
def previous_rows(
    x: Float[Tensor, "vectors d"], latents: int, previous: Coder, *, seed: int
) -> Float[Tensor, "latents d"]:
    """Directions of another dictionary of the site, those that write most first.

    Where it has too few, random vectors follow. An encoder that belonged to them does not come
    along: with unit rows its scale would be wrong.
    """
    code, W_dec = previous.encode(x), previous.directions()
    energy = torch.zeros(len(W_dec), dtype=W_dec.dtype, device=W_dec.device)
    energy.index_add_(0, code.support.latent, code.value.to(W_dec.dtype).square())
    order = (energy * W_dec.square().sum(1)).argsort(descending=True, stable=True)
    return _filled(_unit(W_dec[order[:latents]].to(x.dtype), seed), x, latents, seed)


def _filled(rows: Tensor, x: Tensor, latents: int, seed: int) -> Tensor:
    if len(rows) == latents:
        return rows
    return torch.cat([rows, data_rows(x, latents - len(rows), seed=seed + 1)])


def _unit(rows: Tensor, seed: int) -> Tensor:
    """Unit rows; a row without a direction gets a random one."""
    norm = rows.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(seed + 2)
    other = torch.randn(rows.shape, generator=g).to(rows)
    flat = norm <= 1e-6 * norm.max().clamp_min(torch.finfo(rows.dtype).tiny)
    rows = torch.where(flat, other, rows)
    return rows / rows.norm(dim=1, keepdim=True)
