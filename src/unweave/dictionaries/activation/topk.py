"""TopK (Gao et al. 2024, 2406.04093) and AbsTopK (2025): a fixed number of latents per token."""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.kernels.select import Scorer, Selection
from unweave.dictionaries.shares import shares


class TopK(Chosen):
    """The k largest pre-activations of each token, through a ReLU."""

    kind: Literal["topk"] = "topk"
    k: PositiveInt
    """Latents per token."""

    def build(self, n_latents: int) -> "TopKActivation":
        """The module; it has no parameters."""
        return TopKActivation(self.k, signed=False)


class AbsTopK(Chosen):
    """The k pre-activations of each token that are largest in size, with their signs.

    One latent then carries two opposite concepts.
    """

    kind: Literal["abstopk"] = "abstopk"
    k: PositiveInt
    """Latents per token."""

    def build(self, n_latents: int) -> "TopKActivation":
        """The module; it has no parameters."""
        return TopKActivation(self.k, signed=True)


class TopKActivation(nn.Module):
    """See `TopK` and `AbsTopK`; the size of k may be changed while training (annealing)."""

    def __init__(self, k: int, *, signed: bool) -> None:
        super().__init__()
        self.k, self.signed = k, signed

    def select(self, scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int) -> Selection:
        """Which latents are active."""
        return shares().of_rows(scorer, x, n_latents, self.k, signed=self.signed)

    def value(self, picked: Float[Tensor, " active"]) -> Float[Tensor, " active"]:
        """Strengths of the chosen latents."""
        return picked if self.signed else torch.relu(picked)
