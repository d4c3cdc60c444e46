"""Signed coefficients written along fixed rows, of which the k that write most are kept.

    x^ = sum_{i kept} z_i d_i + b        z any function of the input, most often z = R (x - b)

Neurons, principal and independent components and the singular vectors of weights are all of this
form and differ in R and D alone. A value may be negative: the sign is part of the code.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode, of_width
from unweave.dictionaries.kernels.ragged import write
from unweave.errors import UserError


def strongest(
    coefficients: Float[Tensor, "rows n"], norm: Float[Tensor, " n"], k: int
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """The k coefficients of each row that write most, |z_i| |d_i|, with their signs."""
    latent = (coefficients.abs() * norm).topk(k, dim=1, sorted=False).indices
    return latent, coefficients.gather(1, latent)


class Coefficients:
    """See the module; all of them where k is not given."""

    def __init__(
        self,
        coefficients: Callable[[Tensor], Tensor],
        W_dec: Float[Tensor, "n d_out"],
        *,
        b_dec: Float[Tensor, " d_out"] | None = None,
        k: int | None = None,
    ) -> None:
        self.coefficients, self.W_dec = coefficients, W_dec
        self.b_dec = W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else b_dec
        self.k = checked_k(k, len(W_dec))
        self._norm = W_dec.norm(dim=1)

    @property
    def n_latents(self) -> int:
        """Number of coefficients."""
        return len(self.W_dec)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """The k coefficients that write most."""
        latent, value = strongest(self.coefficients(x.to(self.W_dec.dtype)), self._norm, self.k)
        return SparseCode.from_topk(latent, value, self.n_latents)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What the coefficients write, and the offset."""
        return write(code.value, self.W_dec, code.support) + self.b_dec

    def directions(self) -> Float[Tensor, "n d_out"]:
        """What one unit of each writes."""
        return self.W_dec


def checked_k(k: int | None, n_latents: int) -> int:
    """k, or all where none is given."""
    if k is None:
        return n_latents
    if not 1 <= k <= n_latents:
        raise UserError(f"k={k} coefficients cannot be kept of {n_latents}; give 1 to {n_latents}")
    return k


def read_by(rows: Float[Tensor, "n d"], offset: Float[Tensor, " d"]) -> Callable[[Tensor], Tensor]:
    """The coefficients z = R (x - offset)."""
    return lambda x: (of_width(x, rows.shape[1], "A linear reader") - offset) @ rows.T
