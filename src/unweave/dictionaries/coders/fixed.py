"""A fixed dictionary with any coder as its encoder, and what an encoder loses against one.

"Inference-time optimisation" (Smith et al. 2024) codes a trained dictionary's rows anew by a
pursuit: so dictionaries can be compared apart from their encoders, and an encoder with the best
code that its own dictionary allows. That loss is the amortisation gap (O'Neill et al. 2024).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.code import Coder, SparseCode, of_width
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.coders.refit import debias
from unweave.dictionaries.kernels.ragged import write
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums

Encoder = Callable[[Tensor, Tensor], SparseCode]
"""Rows `[rows, d]` and a dictionary `[latents, d]` to a code, such as `partial(fista, penalty=1)`
or `partial(orthogonal_matching_pursuit, k=32)`."""


class FixedDictionary:
    """x ~ (sum_i c_i d_i + b_dec) / scale with c chosen by a coder: a `Coder` without weights of
    its own to encode.
    """

    def __init__(
        self,
        W_dec: Float[Tensor, "latents d"],
        encoder: Encoder,
        *,
        b_dec: Float[Tensor, " d"] | None = None,
        scale: float = 1.0,
    ) -> None:
        self.W_dec, self._encoder, self.scale = W_dec, encoder, scale
        self.b_dec = W_dec.new_zeros(W_dec.shape[1]) if b_dec is None else b_dec

    @property
    def n_latents(self) -> int:
        """Number of atoms."""
        return len(self.W_dec)

    def encode(self, x: Float[Tensor, "rows d"]) -> SparseCode:
        """The coder's code of the rows, scaled and without the offset."""
        rows = of_width(x, self.W_dec.shape[1], "A fixed dictionary").to(self.W_dec.dtype)
        return self._encoder(rows * self.scale - self.b_dec, self.W_dec)

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """In the raw units of the site."""
        return (write(code.value, self.W_dec, code.support) + self.b_dec) / self.scale

    def directions(self) -> Float[Tensor, "latents d"]:
        """The atoms in raw units."""
        return self.W_dec / self.scale


class AmortisationGap(NamedTuple):
    """One dictionary under three codes of the same rows, with as many latents in each row."""

    l0: float
    """Mean number of latents of the dictionary's own code."""
    fvu: float
    """Of its own code."""
    fvu_refit: float
    """With the same latents and the best values: what the values lost, shrinkage above all."""
    fvu_pursuit: float
    """With latents and values by OMP."""

    @property
    def gap(self) -> float:
        """What the encoder costs. Negative where it beats OMP, which is greedy and no bound."""
        return self.fvu - self.fvu_pursuit


@torch.no_grad()
def amortisation_gap(
    coder: Coder,
    x: Float[Tensor, "rows d_in"],
    target: Float[Tensor, "rows d_out"] | None = None,
    *,
    signed: bool = False,
) -> AmortisationGap:
    """Codes `target` (by default `x`) anew in the coder's own directions around its own offset.

    Every row may spend as many latents as the coder spent on it. The offset is what the coder
    decodes from no latents; one that depends on the input, such as a skip, is not taken into
    account. `signed` as the coder's values are.
    """
    y = x if target is None else target
    code, W_dec = coder.encode(x), coder.directions()
    empty = SparseCode.from_dense(y.new_zeros(1, len(W_dec)))
    b_dec = coder.decode(empty)
    rest = (y - b_dec).to(W_dec.dtype)
    spent = torch.bincount(code.support.row[code.value != 0], minlength=len(x))
    refit = debias(code, rest, W_dec, signed=signed)
    pursued = orthogonal_matching_pursuit(rest, W_dec, spent, signed=signed)
    return AmortisationGap(
        l0=code.l0(),
        fvu=fidelity_of(fidelity_sums(y, coder.decode(code), code)).fvu,
        fvu_refit=_fvu(rest, W_dec, refit),
        fvu_pursuit=_fvu(rest, W_dec, pursued),
    )


def _fvu(y: Tensor, W_dec: Tensor, code: SparseCode) -> float:
    return fidelity_of(fidelity_sums(y, write(code.value, W_dec, code.support), code)).fvu
