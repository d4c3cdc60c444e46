"""What is on at every position: numbers of writers, strengths, and the square the norms need."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Active(NamedTuple):
    """A stream held as a sum of writers."""

    writer: Int[Tensor, "rows on"]
    """Which writers are on."""
    strength: Float[Tensor, "rows on"]
    """How strongly; zero fills rows with fewer."""
    square: Float[Tensor, " rows"]
    """Mean square of the stream, from strengths and Gram matrix alone."""

    def joined(
        self,
        writer: Int[Tensor, "rows more"],
        strength: Float[Tensor, "rows more"],
        gram: Float[Tensor, "writers writers"],
    ) -> "Active":
        """With more writers on: |a + b|^2 = |a|^2 + 2 a.b + |b|^2.

        Summed in float64: where a later block erases what an earlier one wrote, large squares
        cancel.
        """
        old, new = self.strength.double(), strength.double()
        cross = gram[self.writer[:, :, None], writer[:, None, :]].double()
        own = gram[writer[:, :, None], writer[:, None, :]].double()
        square = (
            self.square
            + 2 * torch.einsum("rm,rn,rmn->r", old, new, cross)
            + torch.einsum("rm,rn,rmn->r", new, new, own)
        )
        return Active(
            torch.cat([self.writer, writer], 1), torch.cat([self.strength, strength], 1), square
        )

    def read(
        self, weight: Float[Tensor, "writers readers"], eps: float
    ) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times virtual weight, over the norm's scale."""
        scale = (self.square.clamp_min(0) + eps).sqrt().to(weight.dtype)
        # A reader that comes before some writers has no rows for them.
        assert int(self.writer.max()) < len(weight)
        total = F.embedding_bag(
            self.writer, weight, mode="sum", per_sample_weights=self.strength.contiguous()
        )
        return total / scale[:, None]
