"""ReLU: sparse only as far as a penalty drives it (Cunningham et al. 2023, Bricken et al. 2023)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen


class ReLU(Chosen):
    """f = max(pre, 0)."""

    kind: Literal["relu"] = "relu"

    def build(self, n_latents: int) -> "ReLUActivation":
        """The module; it has no parameters."""
        return ReLUActivation()


class ReLUActivation(nn.Module):
    """See `ReLU`."""

    def forward(
        self, pre: Float[Tensor, "rows latents"], b_enc: Float[Tensor, " latents"] | None = None
    ) -> Float[Tensor, "rows latents"]:
        """Latents of every row."""
        return torch.relu(pre)

    def reach(self, margin: float) -> Float[Tensor, ""]:
        """What a pre-activation must exceed to matter: zero, whatever its rounding."""
        return torch.zeros(())

    def at(
        self, picked: Float[Tensor, " active"], latent: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """Latents at the entries of a support."""
        return torch.relu(picked)
