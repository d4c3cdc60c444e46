"""Gated latents, shaped like the GLU they replace: pre = silu(g.x) relu(u.x).

A gated MLP's neuron writes silu(g.x) (u.x) d; one latent for u and one for -u make it up, where
ReLU latents need many. They hold it exactly with AbsTopK alone, while the one that is on is among
the k chosen: where the gate is shut silu is slightly negative (down to -0.28), and so is pre, which
ReLU, TopK and the rest cut off. Not to be confused with the Gated SAE, whose gate is a step
(`activation.gated`).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import Support
from unweave.dictionaries.encoder.linear import linear_scorer
from unweave.dictionaries.kernels.ragged import inner, pick
from unweave.dictionaries.kernels.select import Scorer


class GLU(Chosen):
    """pre = silu(W_gate x + b_gate) relu(W_enc x + b_enc)."""

    kind: Literal["glu"] = "glu"

    def build(self, d_in: int, n_latents: int) -> "GLUEncoder":
        """The module, all zeros."""
        return GLUEncoder(d_in, n_latents)


class GLUEncoder(nn.Module):
    """See `GLU`."""

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_gate = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_gate = nn.Parameter(torch.zeros(n_latents))

    def dense(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        """All products, differentiable."""
        gate = nn.functional.linear(x, self.W_gate, self.b_gate)
        return silu(gate) * torch.relu(nn.functional.linear(x, self.W_enc, self.b_enc))

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """What latents are ranked by: the product."""
        gate = linear_scorer(self.W_gate, self.b_gate, dtype)
        up = linear_scorer(self.W_enc, self.b_enc, dtype)
        return lambda tile: silu(gate(tile)).mul_(up(tile).relu_())

    def at(
        self, x: Float[Tensor, "rows d_in"], support: Support, score: Float[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """Products of chosen latents, differentiable; both factors are computed anew."""
        gate = _picked(x, self.W_gate, self.b_gate, support)
        return silu(gate) * torch.relu(_picked(x, self.W_enc, self.b_enc, support))


def _picked(x: Tensor, W: Tensor, b: Tensor, support: Support) -> Tensor:
    known = inner(x.detach(), W.detach(), support) + b.detach()[support.latent]
    return pick(known, x, W, b, support)
