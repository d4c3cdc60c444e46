"""What is on at every position: numbers of writers, strengths, and the square the norms need."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.kernels.native import calls as native


class On(NamedTuple):
    """Features that are on, numbered within their part."""

    feature: Int[Tensor, "*batch on"]
    """Which."""
    strength: Float[Tensor, "*batch on"]
    """How strongly; zero fills rows with fewer."""

    def square(self, gram: Float[Tensor, "*heads features features"]) -> Float[Tensor, "..."]:
        """Mean square of what they write together, by head where the Gram matrix is.

        In float64: what the features of a sum have in common may cancel.
        """
        products = gram[..., self.feature[..., :, None], self.feature[..., None, :]].double()
        strength = self.strength.double()
        return torch.einsum("...m,...mn,...n->...", strength, products, strength)


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
        cross = gram[self.writer[:, :, None], writer[:, None, :]].double()
        product = torch.einsum("rm,rmn,rn->r", self.strength.double(), cross, strength.double())
        square = self.square + 2 * product + On(writer, strength).square(gram)
        return Active(
            torch.cat([self.writer, writer], 1), torch.cat([self.strength, strength], 1), square
        )

    def scale(self, eps: float) -> Float[Tensor, " rows"]:
        """What a norm divides by."""
        return (self.square.clamp_min(0) + eps).sqrt()

    def read(
        self, weight: Float[Tensor, "writers readers"], eps: float
    ) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times virtual weight, over the norm's scale."""
        # A reader that comes before some writers has no rows for them.
        assert int(self.writer.max()) < len(weight)
        total = F.embedding_bag(
            self.writer, weight, mode="sum", per_sample_weights=self.strength.contiguous()
        )
        return total / self.scale(eps).to(weight.dtype)[:, None]


def largest(values: Float[Tensor, "rows features"], k: int, *, by_size: bool = False) -> On:
    """The k largest of each row, chosen as the factored form chooses them."""
    if native.able(values):
        return On(*native.largest(values, k, by_size=by_size))
    feature = (values.abs() if by_size else values).topk(k, dim=1, sorted=False).indices
    return On(feature, values.gather(1, feature))
