"""ProLU (Taggart 2024): the bias decides whether a latent fires, not how strongly.

    f = m if m + b > 0 and m > 0 else 0,    m = W_enc x

The step is given the gradients of a ReLU, so that b is trained at all.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen


class ProLU(Chosen):
    """f = m where m and m + b are positive; no shrinkage through the bias."""

    kind: Literal["prolu"] = "prolu"

    def build(self, n_latents: int) -> "ProLUActivation":
        """The module; its bias is the encoder's."""
        return ProLUActivation()


class ProLUActivation(nn.Module):
    """See `ProLU`."""

    def forward(
        self, pre: Float[Tensor, "rows latents"], b_enc: Float[Tensor, " latents"]
    ) -> Float[Tensor, "rows latents"]:
        """Latents of every row; `pre` holds the bias already."""
        open_ = (pre > 0) & (pre - b_enc > 0)
        # Value m, gradient of pre = m + b: the bias is taken out of the value alone.
        return torch.where(open_, pre - b_enc.detach(), 0.0)
