"""The common encoder: pre = W_enc x + b_enc."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.ragged import pick
from unweave.dictionaries.kernels.select import Scorer


class Linear(Chosen):
    """pre = W_enc x + b_enc."""

    kind: Literal["linear"] = "linear"

    def build(self, d_in: int, n_latents: int) -> "LinearEncoder":
        """The module, all zeros: `dictionaries.initial` fills it."""
        return LinearEncoder(d_in, n_latents)


class LinearEncoder(nn.Module):
    """See `Linear`."""

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))

    def dense(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        """All pre-activations, differentiable."""
        return nn.functional.linear(x, self.W_enc, self.b_enc)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """What latents are ranked by: their pre-activations, multiplied in `dtype`."""
        return linear_scorer(self.W_enc, self.b_enc, dtype)

    def at(
        self,
        x: Float[Tensor, "rows d_in"],
        support: Support,
        score: Float[Tensor, " active"],
        low: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[Tensor, " active"]:
        """Pre-activations of chosen latents, differentiable; `low` is x as it was multiplied."""
        return pick(score, x, self.W_enc, self.b_enc, support, low)


def linear_scorer(W_enc: Tensor, b_enc: Tensor, dtype: torch.dtype) -> Scorer:
    """`W_enc x + b_enc` for a tile of rows, in `dtype`; the weights are cast once."""
    W, b = W_enc.detach().to(dtype).T, b_enc.detach().to(dtype)
    return lambda tile: torch.addmm(b, tile.to(dtype), W)
