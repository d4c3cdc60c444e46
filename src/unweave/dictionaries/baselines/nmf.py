"""NMF: non-negative parts that are only ever added (Lee & Seung 1999), for signed activations.

Activations are negative as often as not. The vectors are centred and split into what lies above
the mean and what lies below it, and the two halves, side by side, are factorised:

    [relu(x - m), relu(m - x)]  ~  Z [P, N],    Z, P, N >= 0,     x^ = m + Z (P - N)

So a part may lower coordinates, yet parts never cancel within one half. A shift by the minimum
would be non-negative too, but would make one outlier decide where zero is.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.baselines.linear import checked_k, strongest
from unweave.dictionaries.baselines.scikit import decomposition
from unweave.dictionaries.code import SparseCode, of_width
from unweave.dictionaries.coders.fista import fista
from unweave.dictionaries.coders.refit import debias
from unweave.dictionaries.kernels.ragged import write


class Parts:
    """A `Coder` of non-negative values by non-negative least squares on the two halves.

    With `k`, the values that write most are kept and refitted.
    """

    def __init__(
        self,
        halves: Float[Tensor, "latents both"],
        mean: Float[Tensor, " d"],
        *,
        k: int | None = None,
    ) -> None:
        self.halves = halves
        """Each part's `[P, N]`, of width 2 d."""
        self.mean, self.k = mean, checked_k(k, len(halves))

    @property
    def n_latents(self) -> int:
        """Number of parts."""
        return len(self.halves)

    def encode(self, x: Float[Tensor, "rows d"]) -> SparseCode:
        """How much of every part, never negative."""
        rows = of_width(x, len(self.mean), "A factorisation").to(self.halves.dtype)
        return parts_code(halved(rows - self.mean), self.halves, self.k)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """The parts added up around the mean."""
        return write(code.value, self.directions(), code.support) + self.mean

    def directions(self) -> Float[Tensor, "latents d"]:
        """P - N."""
        above, below = self.halves.chunk(2, dim=1)
        return above - below


def nmf(
    x: Float[Tensor, "vectors d"],
    n_latents: int,
    *,
    k: int | None = None,
    seed: int = 0,
    steps: int = 300,
) -> Parts:
    """Parts of the vectors, seen from their mean."""
    mean = x.mean(0)
    return Parts(factorise(halved(x - mean), n_latents, seed=seed, steps=steps), mean, k=k)


def halved(x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows both"]:
    """What is positive beside what is negative, both as sizes."""
    return torch.cat([x.clamp_min(0), (-x).clamp_min(0)], dim=1)


def factorise(
    v: Float[Tensor, "rows features"], n_latents: int, *, seed: int, steps: int
) -> Float[Tensor, "latents features"]:
    """The parts H of V ~ Z H with all three non-negative, each of unit length.

    scikit-learn warns where `steps` sweeps of coordinate descent did not settle it.
    """
    model = decomposition("NMF").NMF(
        n_components=n_latents,
        init="nndsvda" if n_latents <= min(v.shape) else "random",
        random_state=seed,
        max_iter=steps,
        tol=1e-3,
    )
    model.fit(v.double().cpu().numpy())
    parts = torch.from_numpy(model.components_.copy()).to(v)
    return parts / parts.norm(dim=1, keepdim=True).clamp_min(1e-12)


def parts_code(
    v: Float[Tensor, "rows features"], parts: Float[Tensor, "latents features"], k: int
) -> SparseCode:
    """Non-negative least squares of rows in parts; the k values that write most, refitted."""
    code = fista(v, parts, 0.0, steps=500, tolerance=1e-4)
    if k == len(parts):
        return code
    latent, value = strongest(code.dense(), parts.norm(dim=1), k)
    return debias(SparseCode.from_topk(latent, value, len(parts)), v, parts)
