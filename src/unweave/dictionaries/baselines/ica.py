"""ICA: directions along which the vectors are least Gaussian (FastICA, Hyvarinen 1999).

    z = R (x - mean),   x^ = mean + D^T z

with sources z of unit variance that are as independent as a linear map can make them. PCA sees
second moments only and cannot tell one rotation of whitened data from another.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.dictionaries.baselines.scikit import decomposition


def ica(
    x: Float[Tensor, "vectors d"],
    n_latents: int | None = None,
    *,
    k: int | None = None,
    seed: int = 0,
    steps: int = 400,
    tolerance: float = 1e-4,
) -> Coefficients:
    """Independent components of the vectors, at most d; of their values the k that write most.

    scikit-learn warns where the iteration has not settled after `steps`. The vectors are whitened
    first, so directions in which they do not vary must be left out by `n_latents`.
    """
    model = decomposition("ICA").FastICA(
        n_components=n_latents,
        whiten="unit-variance",
        whiten_solver="eigh",
        random_state=seed,
        max_iter=steps,
        tol=tolerance,
    )
    model.fit(x.double().cpu().numpy())
    R, D, mean = (
        torch.from_numpy(array.copy()).to(x)
        for array in (model.components_, model.mixing_.T, model.mean_)
    )
    return Coefficients(read_by(R, mean), D.contiguous(), b_dec=mean, k=k)
