"""Gated SAE (Rajamanoharan et al. 2024, 2404.16014): one path says whether, another how strongly.

    pi  = W_enc x + b_enc                       fires where pi > 0
    mag = exp(r_mag) (W_enc x) + b_mag
    f   = 1[pi > 0] relu(mag)

The penalty falls on relu(pi) instead of f, so that strengths are not shrunk; the gate, which the
step cuts off from the reconstruction, learns from a second reconstruction out of relu(pi) with a
frozen decoder (`training.objectives` adds it for this activation).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen


class Gated(Chosen):
    """f = 1[pi > 0] relu(exp(r_mag) W_enc x + b_mag)."""

    kind: Literal["gated"] = "gated"

    def build(self, n_latents: int) -> "GatedActivation":
        """The module; `r_mag` and `b_mag` [latents] are its parameters."""
        return GatedActivation(n_latents)


class GatedActivation(nn.Module):
    """See `Gated`."""

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def forward(
        self, pre: Float[Tensor, "rows latents"], b_enc: Float[Tensor, " latents"]
    ) -> Float[Tensor, "rows latents"]:
        """Latents of every row; `pre` is pi."""
        magnitude = self.r_mag.exp() * (pre - b_enc) + self.b_mag
        return torch.relu(magnitude) * (pre > 0)
