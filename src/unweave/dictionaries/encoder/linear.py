"""The common encoder: pre = W_enc x + b_enc."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.ragged import pick
from unweave.dictionaries.kernels.rounding import rounded
from unweave.dictionaries.kernels.select import Scorer


class Linear(Chosen):
    """pre = W_enc x + b_enc."""

    kind: Literal["linear"] = "linear"

    def build(self, d_in: int, n_latents: int) -> "LinearEncoder":
        """The module, all zeros: `dictionaries.initial` fills it."""
        return LinearEncoder(d_in, n_latents)


@dataclass(frozen=True)
class LinearScorer:
    """`W x + bias` for a tile of rows; what it multiplies by is there for kernels to read."""

    W: Float[Tensor, "latents d_in"]
    """In the format of the product."""
    bias: Float[Tensor, " latents"]
    """As it is trained."""

    def __call__(self, tile: Tensor) -> Tensor:
        """Scores [tile, latents] of a tile [tile, d_in], in the format of the product."""
        return torch.addmm(self.bias.to(self.W.dtype), tile.to(self.W.dtype), self.W.T)


class LinearEncoder(nn.Module):
    """See `Linear`."""

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.screen: Callable[[LinearScorer], Scorer] | None = None

    def dense(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        """All pre-activations, differentiable."""
        return nn.functional.linear(x, self.W_enc, self.b_enc)

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """What latents are ranked by: their pre-activations, multiplied in `dtype`.

        While somebody screens them (`training.screening`), of those that are left.
        """
        scorer = linear_scorer(self.W_enc, self.b_enc, dtype)
        return scorer if self.screen is None else self.screen(scorer)

    def at(
        self,
        x: Float[Tensor, "rows d_in"],
        support: Support,
        score: Float[Tensor, " active"],
        low: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[Tensor, " active"]:
        """Pre-activations of chosen latents, differentiable; `low` is x as it was multiplied."""
        return pick(score, x, self.W_enc, self.b_enc, support, low)


def linear_scorer(W_enc: Tensor, b_enc: Tensor, dtype: torch.dtype) -> LinearScorer:
    """`W_enc x + b_enc` for a tile of rows, in `dtype`; the weights are cast once."""
    return LinearScorer(rounded(W_enc, dtype).detach().to(dtype), b_enc.detach())
