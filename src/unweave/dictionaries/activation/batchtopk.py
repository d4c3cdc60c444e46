"""BatchTopK (Bussmann et al. 2024, 2412.06410): k latents per token on average.

In training the `rows * k` largest positive pre-activations of the batch are kept. A token's code
must not depend on its neighbours once training is over, so a threshold takes the batch's place: the
running mean of the smallest pre-activation that was kept.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.kernels.select import Scorer, Selection, above
from unweave.dictionaries.shares import shares


class BatchTopK(Chosen):
    """The `rows * k` largest positive pre-activations of a batch; a threshold afterwards."""

    kind: Literal["batchtopk"] = "batchtopk"
    k: PositiveInt
    """Latents per token on average."""
    memory: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the threshold's running mean; shorter while fewer batches have been seen."""

    def build(self, n_latents: int) -> "BatchTopKActivation":
        """The module; `threshold` and `batches` are what it remembers."""
        return BatchTopKActivation(self)


class BatchTopKActivation(nn.Module):
    """See `BatchTopK`."""

    threshold: Tensor
    batches: Tensor

    def __init__(self, settings: BatchTopK) -> None:
        super().__init__()
        self.k, self.memory = settings.k, settings.memory
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("batches", torch.zeros(()))

    def select(self, scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int) -> Selection:
        """Which latents are active: of the batch in training, by the threshold otherwise."""
        if not self.training:
            return above(scorer, x, self.threshold)
        chosen, smallest = shares().of_batch(scorer, x, n_latents, self.k)
        self.remember(smallest)
        return chosen

    @torch.no_grad()
    def remember(self, score: Float[Tensor, " active"]) -> None:
        """Move the threshold towards the smallest score that was kept in a batch."""
        if len(score):
            # Mostly of the later half of the run: a short one must not keep its first thresholds.
            keep = min(self.memory, float(self.batches / (self.batches + 2)))
            self.threshold.lerp_(score.min().to(self.threshold.dtype), 1 - keep)
            self.batches += 1

    def value(self, picked: Float[Tensor, " active"]) -> Float[Tensor, " active"]:
        """Strengths of the chosen latents."""
        return torch.relu(picked)
