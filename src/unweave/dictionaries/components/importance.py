"""Causal importance: for every rank-one piece, how much it matters for one input.

    g = lower(raw),  raw_c = W_out,c . gelu(W_in,c h_c + b_in,c) + b_out,c,  h_c = V_c . a

A piece with g = 1 must stay; one with g = 0 may be scaled by anything in [0, 1]. Bushnaq, Braun &
Sharkey 2025 (arXiv:2506.20790), section 2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

LEAK = 0.01
"""Slope of the leaky hard sigmoids outside of [0, 1], on the side that leaks."""


class Importance(NamedTuple):
    """What the gates of one matrix say about a batch."""

    inner: Float[Tensor, "*batch components"]
    """h_c = V_c . a, what each piece reads."""
    raw: Float[Tensor, "*batch components"]
    """Gate outputs before any sigmoid."""

    @property
    def gate(self) -> Float[Tensor, "*batch components"]:
        """g as masks use it: 0 to 1, but for a leak of 1% below zero."""
        return lower_leaky(self.raw)

    @property
    def value(self) -> Float[Tensor, "*batch components"]:
        """g as it is read: 0 to 1."""
        return self.raw.clamp(0, 1)


class Gates(nn.Module):
    """One small MLP a piece, 1 -> width -> 1, from what the piece reads to its importance."""

    def __init__(self, n_components: int, width: int) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.zeros(n_components, width))
        self.b_in = nn.Parameter(torch.zeros(n_components, width))
        self.W_out = nn.Parameter(torch.zeros(n_components, width))
        self.b_out = nn.Parameter(torch.zeros(n_components))

    def start_(self, generator: torch.Generator) -> None:
        """Normal weights that keep the scale of what passes through; biases zero."""
        width = self.W_in.shape[1]
        with torch.no_grad():
            self.W_in.normal_(0, 2**0.5, generator=generator)
            self.W_out.normal_(0, width**-0.5, generator=generator)
            self.b_in.zero_()
            self.b_out.zero_()

    def forward(
        self, inner: Float[Tensor, "*batch components"]
    ) -> Float[Tensor, "*batch components"]:
        """Raw gate outputs, each from its own piece's reading alone."""
        rows = inner.reshape(-1, inner.shape[-1])
        # Components first: a batched product is several times faster here than broadcasting.
        pre = torch.baddbmm(self.b_in[:, None], rows.T[:, :, None], self.W_in[:, None])
        raw = torch.bmm(nn.functional.gelu(pre), self.W_out[:, :, None])[:, :, 0].T
        return (raw + self.b_out).reshape(inner.shape)


def lower_leaky(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Hard sigmoid that leaks below 0: a piece shut off wrongly still feels its error."""
    return nn.functional.leaky_relu(raw, LEAK).clamp(max=1)


def upper_leaky(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Hard sigmoid that leaks above 1: a gate far beyond 1 is still drawn down by the penalty."""
    return 1 - lower_leaky(1 - raw)
