"""k-means clusters: every vector is said to be its cluster's centre; one latent a row, value one.

Lloyd's iteration (1982) from random vectors; a cluster that loses all its vectors moves to the
vector farthest from its centre.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode, of_width
from unweave.dictionaries.kernels.ragged import write
from unweave.errors import UserError

_TILE_ROWS = 2048


class Clusters:
    """A one-hot code around the mean: latent i writes centre i minus the mean."""

    def __init__(self, centres: Float[Tensor, "latents d"], mean: Float[Tensor, " d"]) -> None:
        self.centres, self.mean = centres, mean

    @property
    def n_latents(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    def encode(self, x: Float[Tensor, "rows d"]) -> SparseCode:
        """One at the nearest centre."""
        rows = of_width(x, self.centres.shape[1], "A clustering").to(self.centres.dtype)
        latent = nearest(rows, self.centres)[:, None]
        value = torch.ones_like(latent, dtype=self.centres.dtype)
        return SparseCode.from_topk(latent, value, self.n_latents)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """The centre."""
        return write(code.value, self.directions(), code.support) + self.mean

    def directions(self) -> Float[Tensor, "latents d"]:
        """The centres, seen from the mean."""
        return self.centres - self.mean


def kmeans(
    x: Float[Tensor, "vectors d"], n_latents: int, *, seed: int, steps: int = 30
) -> Clusters:
    """Clusters of the vectors."""
    return Clusters(cluster_centres(x, n_latents, seed=seed, steps=steps), x.mean(0))


@torch.no_grad()
def cluster_centres(
    x: Float[Tensor, "vectors d"], n: int, *, seed: int, steps: int = 30
) -> Float[Tensor, "n d"]:
    """Centres after at most so many steps; fewer where nothing changes any more."""
    if n > len(x):
        raise UserError(f"{n} clusters cannot be made of {len(x)} vectors; give more vectors")
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
    centres = x[drawn.to(x.device)].clone()
    label = nearest(x, centres)
    for _ in range(steps):
        centres = _means(x, label, centres)
        last, label = label, nearest(x, centres)
        if torch.equal(last, label):
            break
    return centres


def nearest(
    x: Float[Tensor, "rows d"], centres: Float[Tensor, "latents d"]
) -> Int[Tensor, " rows"]:
    """Index of the nearest centre; of equally near ones the first."""
    size = centres.square().sum(1) / 2
    tiles = [(size - rows @ centres.T).argmin(1) for rows in x.split(_TILE_ROWS)]
    return torch.cat(tiles)


def _means(x: Tensor, label: Tensor, centres: Tensor) -> Tensor:
    count = torch.bincount(label, minlength=len(centres))
    means = torch.zeros_like(centres).index_add_(0, label, x) / count.clamp_min(1)[:, None]
    empty = (count == 0).nonzero()[:, 0]
    if len(empty):
        far = (x - centres[label]).square().sum(1).topk(len(empty)).indices
        means[empty] = x[far]
    return means
