"""Matching-pursuit encoder (MP-SAE, Costa et al. 2025, 2506.03093): the dictionary encodes itself.

    r_0 = x - b_dec;  k times: j = argmax d_j . r,  c = relu(d_j . r),  c_j += c,  r -= c d_j

Unrolled and trained end to end; the number of steps can differ at inference. Latents that only
matter once others are explained away (hierarchies) are found where a parallel encoder fails.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.kernels.select import TILE_ROWS


class Pursuit(Chosen):
    """k steps of matching pursuit with the decoder's own unit rows."""

    kind: Literal["pursuit"] = "pursuit"

    def build(self, d_in: int, n_latents: int) -> "PursuitEncoder":
        """The module; it has no parameters of its own."""
        return PursuitEncoder()


class PursuitEncoder(nn.Module):
    """See `Pursuit`."""

    def pursue(
        self, x: Float[Tensor, "rows d"], W_dec: Float[Tensor, "latents d"], k: int
    ) -> SparseCode:
        """Code of rows from which `b_dec` has been taken; rows of `W_dec` have unit norm.

        A latent may be chosen twice: its first entry then holds the sum, its later ones zero.
        """
        residual, latents, values, firsts = x, [], [], []
        for _ in range(k):
            with torch.no_grad():
                tiles = [(tile @ W_dec.T).argmax(1) for tile in residual.split(TILE_ROWS)]
                latent = torch.cat(tiles)
            atom = W_dec[latent]
            value = torch.relu((residual * atom).sum(1))
            residual = residual - value[:, None] * atom
            latents.append(latent)
            values.append(value)
            again = torch.stack(latents, 1) == latent[:, None]
            firsts.append(again.int().argmax(1))
        chosen = torch.stack(values, 1)
        summed = torch.zeros_like(chosen).scatter_add(1, torch.stack(firsts, 1), chosen)
        return SparseCode.from_topk(torch.stack(latents, 1), summed, n_latents=len(W_dec))
