"""Kronecker encoder (KronSAE, 2505.22255): a latent is the AND of two small ones.

    u = relu(P x + p), v = relu(Q x + q) in each of h heads;  pre of (head, i, j) = sqrt(u_i v_j)

Encoding costs h (m + n) d instead of h m n d, but a product and a root for each latent remain.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import Support
from unweave.dictionaries.encoder.linear import linear_scorer
from unweave.dictionaries.kernels.ragged import inner, pick
from unweave.dictionaries.kernels.rounding import rounded
from unweave.dictionaries.kernels.select import Scorer


class Kronecker(Chosen):
    """pre = sqrt(relu(u_i) relu(v_j)) within each head."""

    kind: Literal["kronecker"] = "kronecker"
    left: int = Field(default=4, ge=2)
    """Left factors per head (m)."""
    right: int = Field(default=4, ge=2)
    """Right factors per head (n); `n_latents / (m n)` is the number of heads."""

    def build(self, d_in: int, n_latents: int) -> "KroneckerEncoder":
        """The module, all zeros."""
        return KroneckerEncoder(d_in, n_latents // (self.left * self.right), self.left, self.right)


class KroneckerEncoder(nn.Module):
    """See `Kronecker`."""

    def __init__(self, d_in: int, heads: int, left: int, right: int) -> None:
        super().__init__()
        self.heads, self.left, self.right = heads, left, right
        self.W_left = nn.Parameter(torch.zeros(heads * left, d_in))
        self.b_left = nn.Parameter(torch.zeros(heads * left))
        self.W_right = nn.Parameter(torch.zeros(heads * right, d_in))
        self.b_right = nn.Parameter(torch.zeros(heads * right))

    def factors(self, x: Float[Tensor, "rows d_in"]) -> tuple[Tensor, Tensor]:
        """Left [rows, heads * left] and right [rows, heads * right] factors, never negative."""
        left = nn.functional.linear(x, self.W_left, self.b_left)
        return torch.relu(left), torch.relu(nn.functional.linear(x, self.W_right, self.b_right))

    def dense(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
        """All pre-activations, differentiable."""
        return _root(self._products(*self.factors(x)))

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """What latents are ranked by; the few factors are multiplied in `dtype`."""
        left = linear_scorer(self.W_left, self.b_left, dtype)
        right = linear_scorer(self.W_right, self.b_right, dtype)

        def scores(tile: Tensor) -> Tensor:
            with torch.no_grad():  # the roots of factors are fewer than those of products
                u, v = (factor(tile).clamp_min_(0).sqrt_() for factor in (left, right))
                return self._products(u, v)

        return scores

    def at(
        self,
        x: Float[Tensor, "rows d_in"],
        support: Support,
        score: Float[Tensor, " active"],
        low: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[Tensor, " active"]:
        """Pre-activations of chosen latents, differentiable in their factors alone."""
        pair = support.latent % (self.left * self.right)
        head = support.latent // (self.left * self.right)
        i = head * self.left + pair // self.right
        j = head * self.right + pair % self.right
        left = _factor(x, self.W_left, self.b_left, _sharing(support, i, len(self.W_left)), low)
        right = _factor(x, self.W_right, self.b_right, _sharing(support, j, len(self.W_right)), low)
        return _root(left * right)

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        u = left.unflatten(1, (self.heads, self.left))
        v = right.unflatten(1, (self.heads, self.right))
        return (u[..., :, None] * v[..., None, :]).flatten(1)


def _sharing(support: Support, factor: Tensor, n_factors: int) -> Support:
    """The chosen latents' factors, as often as latents of a row share them."""
    return Support(support.offsets, factor, n_factors)


def _factor(x: Tensor, W: Tensor, b: Tensor, support: Support, low: Tensor | None) -> Tensor:
    read = x if low is None else low
    with torch.no_grad():
        known = inner(read, rounded(W, read.dtype), support).to(b.dtype) + b[support.latent]
    return torch.relu(pick(known, x, W, b, support, low))


def _root(product: Tensor) -> Tensor:
    # The root's gradient is infinite at zero, where the latent is off and must get none.
    on = product > 0
    return torch.where(on, torch.where(on, product, 1.0).sqrt(), 0.0)
