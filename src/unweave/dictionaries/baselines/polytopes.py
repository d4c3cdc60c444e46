"""Polytopes: the regions in which the next layer's neurons keep their on/off pattern.

Within one, a ReLU layer is one affine map, so the pattern says all that the layer distinguishes
(Black et al. 2022). There are as many patterns as vectors, nearly, so they are grouped:

    clustered     k-means of the patterns: one latent, one group; it writes its vectors' mean.
                  Descriptions come out too long: every combination needs a cluster of its own.
    factorised    pattern ~ Z H with non-negative or principal parts H of the pattern: several at
                  once, each a set of neurons that switch together. Z writes what least squares
                  makes of it. This is the compositional grouping that Sharkey (2024) leaves open.

Both read a vector through its pattern alone: vectors of one polytope have one code.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.baselines.kmeans import cluster_centres, nearest
from unweave.dictionaries.baselines.linear import checked_k
from unweave.dictionaries.baselines.nmf import factorise, parts_code
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.code import SparseCode, of_width
from unweave.dictionaries.kernels.ragged import write
from unweave.subject import MLPWeights

_RIDGE = 1e-4

Pattern = Callable[[Tensor], Tensor]
"""From vectors `[rows, d]` to `[rows, neurons]`, one where a neuron is on and zero elsewhere."""


def activation_pattern(weights: MLPWeights) -> Pattern:
    """Which neurons of the next MLP are on, for vectors at its `mlp.in`.

    On is a positive pre-activation, of the gate where there is one: exact for ReLU, and for SiLU
    and GELU the side of the kink on which the neuron is.
    """
    W = weights.W_in if weights.W_gate is None else weights.W_gate
    b = weights.b_in if weights.W_gate is None else weights.b_gate
    read, bias = W.float(), torch.zeros(len(W)) if b is None else b.float()

    def pattern(x: Tensor) -> Tensor:
        rows = of_width(x, read.shape[1], "The next layer").float()
        return (rows @ read.T + bias > 0).float()

    return pattern


class PolytopeClusters:
    """A one-hot code: the cluster of a vector's pattern, which writes the mean of its vectors."""

    def __init__(
        self,
        pattern: Pattern,
        centres: Float[Tensor, "latents neurons"],
        W_dec: Float[Tensor, "latents d"],
        mean: Float[Tensor, " d"],
    ) -> None:
        self._pattern, self.centres, self.W_dec, self.mean = pattern, centres, W_dec, mean

    @property
    def n_latents(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    def encode(self, x: Float[Tensor, "rows d"]) -> SparseCode:
        """One at the nearest cluster of patterns."""
        latent = nearest(self._pattern(x), self.centres)[:, None]
        return SparseCode.from_topk(
            latent, torch.ones_like(latent, dtype=self.W_dec.dtype), self.n_latents
        )

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """The mean of the cluster's vectors."""
        return write(code.value, self.W_dec, code.support) + self.mean

    def directions(self) -> Float[Tensor, "latents d"]:
        """The clusters' means, seen from the mean of all."""
        return self.W_dec


class PolytopeFactors:
    """Several factors of the pattern at once, each writing a direction found by least squares."""

    def __init__(
        self,
        pattern: Pattern,
        code: Callable[[Tensor], SparseCode],
        parts: Float[Tensor, "latents neurons"],
        W_dec: Float[Tensor, "latents d"],
        b_dec: Float[Tensor, " d"],
    ) -> None:
        self._pattern, self._code = pattern, code
        self.parts, self.W_dec, self.b_dec = parts, W_dec, b_dec

    @property
    def n_latents(self) -> int:
        """Number of factors."""
        return len(self.parts)

    def encode(self, x: Float[Tensor, "rows d"]) -> SparseCode:
        """How much of each factor the pattern holds."""
        return self._code(self._pattern(x))

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d"]:
        """What the factors write, and the offset."""
        return write(code.value, self.W_dec, code.support) + self.b_dec

    def directions(self) -> Float[Tensor, "latents d"]:
        """What one unit of each factor writes."""
        return self.W_dec


@torch.no_grad()
def polytope_clusters(
    x: Float[Tensor, "vectors d"], pattern: Pattern, n_latents: int, *, seed: int, steps: int = 30
) -> PolytopeClusters:
    """Clusters of the vectors' patterns."""
    bits, mean = pattern(x), x.mean(0)
    centres = cluster_centres(bits, n_latents, seed=seed, steps=steps)
    label = nearest(bits, centres)
    count = torch.bincount(label, minlength=n_latents).clamp_min(1)[:, None]
    means = torch.zeros(n_latents, x.shape[1]).to(x).index_add_(0, label, x - mean) / count
    return PolytopeClusters(pattern, centres, means, mean)


@torch.no_grad()
def polytope_factors(
    x: Float[Tensor, "vectors d"],
    pattern: Pattern,
    n_latents: int,
    *,
    k: int | None = None,
    by: Literal["nmf", "pca"] = "nmf",
    seed: int = 0,
    steps: int = 300,
) -> PolytopeFactors:
    """Factors of the vectors' patterns: non-negative parts, or (signed) principal directions.

    With `k`, a vector keeps the k of its values that write most of the pattern; what factors write
    of the vectors is fitted to the values that are kept.
    """
    bits = pattern(x)
    parts, code = (
        _parts(bits, n_latents, k, seed, steps) if by == "nmf" else _axes(bits, n_latents, k)
    )
    W_dec, b_dec = _written(code(bits), x)
    return PolytopeFactors(pattern, code, parts, W_dec, b_dec)


_Coded = Callable[[Tensor], SparseCode]


def _parts(
    bits: Tensor, n_latents: int, k: int | None, seed: int, steps: int
) -> tuple[Tensor, _Coded]:
    parts = factorise(bits, n_latents, seed=seed, steps=steps)
    return parts, partial(parts_code, parts=parts, k=checked_k(k, n_latents))


def _axes(bits: Tensor, n_latents: int, k: int | None) -> tuple[Tensor, _Coded]:
    axes = pca(bits, n_latents, k=k)
    return axes.directions(), axes.encode


def _written(code: SparseCode, x: Tensor) -> tuple[Tensor, Tensor]:
    """The W and b of x ~ Z W + b, by ridge regression."""
    Z, mean = code.dense().double(), x.double().mean(0)
    centred = Z - Z.mean(0)
    gram = centred.T @ centred
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    W = torch.linalg.solve(gram, centred.T @ (x.double() - mean))
    return W.to(x), (mean - Z.mean(0) @ W).to(x)
