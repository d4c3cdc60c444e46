"""What a penalty looks at: how strongly each latent writes in each row."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass


class Strengths(NamedTuple):
    """`u = f ||d||` of one pass, with what some penalties need besides."""

    u: Tensor
    """[rows, latents] where all latents are computed, [active] where they are chosen."""
    row: Tensor | None
    """Row of each entry of an `[active]` u."""
    rows: int
    """Number of rows."""
    n_latents: int
    """Number of latents."""
    pre: Tensor | None
    """Pre-activations, [rows, latents] where all are computed, [active] where those are that can
    exceed their thresholds."""
    lengths: Float[Tensor, " latents"]
    """||d||, one for unit decoders."""
    latent: Tensor | None = None
    """Latent of each entry of an `[active]` pre."""

    def per_row(self, entries: Tensor) -> Float[Tensor, " rows"]:
        """Sum entries shaped like u over the latents of each row."""
        if self.row is None:
            return entries.sum(1)
        return entries.new_zeros(self.rows).index_add(0, self.row, entries)


def strengths(dictionary: Dictionary, passed: Pass) -> Strengths:
    """Strengths of one pass; for a gated activation those of its gate, which is what is penalised
    there (Rajamanoharan et al. 2024)."""
    lengths, n = dictionary.lengths(), dictionary.n_latents
    if passed.code is not None:
        support, value = passed.code.support, passed.code.value
        u = value.abs() * lengths[support.latent]
        picked = passed.picked
        return Strengths(u, support.row, support.rows, n, picked, lengths, support.latent)
    assert passed.latents is not None
    assert passed.pre is not None
    gated = dictionary.spec.activation.kind == "gated"
    value = torch.relu(passed.pre) if gated else passed.latents.abs()
    return Strengths(value * lengths, None, len(value), n, passed.pre, lengths)
