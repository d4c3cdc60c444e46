"""One block in features: what is moved between positions, and what happens in place.

With f the features before the block, P its heads' patterns and s the norm's scale, that of the
stream which f stands for (s^2 = f G f + eps, G the products of what features write):

    matrix      pre_t = sum_h sum_s P^h_ts M_OV^h f_s / s_s + M f_t / s_t + M_res f_t + b

    features    u_t = topk( sum_s P^h_ts (A f_s / s_s) + a )             value features, h by head
                g_t = topk( (B f_t + C u_t) / s_mid + b )                interaction features
                pre_t = D u_t + E g_t + M_res f_t + b

    f'_t = topk( pre_t )

s_mid is the scale of the stream between attention and MLP, from f and u. Everything is a number of
a feature or a weight between two of them: no vector of the subject's stream exists.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unweave.decompile.layers.codes import activate, n_features, product, square, times
from unweave.decompile.layers.spec import BlockSpec
from unweave.dictionaries.kernels.sparse import product_dtype


class Step(NamedTuple):
    """What one block did."""

    pre: Float[Tensor, "batch pos latents"]
    """Pre-activations of the features after it."""
    values: Float[Tensor, "batch pos values"] | None
    """Value features where they arrive, where there are such."""
    interactions: Float[Tensor, "batch pos interactions"] | None
    """Interaction features, where there are such."""


class Block(nn.Module):
    """What both forms share; weights are [what is read, who reads it]."""

    gram: Tensor
    W_skip: Tensor | None

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.spec, self.eps = spec, eps
        n = spec.features_in
        self.register_buffer("gram", torch.zeros((n,) if spec.tokens else (n, n)))
        self.b_out = nn.Parameter(torch.zeros(spec.n_out))
        skip = nn.Parameter(torch.zeros(n, spec.n_out)) if spec.skip else None
        self.register_parameter("W_skip", skip)

    @property
    def dtype(self) -> torch.dtype:
        """What products are taken in: training does not notice bfloat16."""
        exact = self.b_out.dtype
        return product_dtype() if self.training and exact == torch.float32 else exact

    def scale(
        self, features: Shaped[Tensor, "batch pos *features"]
    ) -> Float[Tensor, "batch pos 1"]:
        """Root mean square of the stream before the block."""
        return self._root(square(features, self.gram, self.dtype))

    def _root(self, mean_square: Tensor) -> Tensor:
        # Rounded products may leave a square a little below zero.
        return (mean_square.clamp_min(0) + self.eps).sqrt()

    def _past(self, features: Tensor) -> Tensor:
        """What comes past the norms."""
        if self.W_skip is None:
            return self.b_out
        return self.b_out + product(features, self.W_skip, self.dtype)


class MatrixBlock(Block):
    """Nothing but matrices before the activation function."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__(spec, eps)
        self.W_move = nn.Parameter(torch.zeros(spec.heads, spec.features_in, spec.n_out))
        self.W_in_place = nn.Parameter(torch.zeros(spec.features_in, spec.n_out))

    def forward(
        self,
        features: Shaped[Tensor, "batch pos *features"],
        patterns: Float[Tensor, "batch heads query key"],
    ) -> Step:
        """See `Block`."""
        scale = self.scale(features)
        pre = product(features, self.W_in_place, self.dtype) / scale
        for head, weight in enumerate(self.W_move):
            read = product(features, weight, self.dtype) / scale
            pre = pre + times(patterns[:, head], read, self.dtype)
        return Step(pre + self._past(features), None, None)


class FeatureBlock(Block):
    """Value features and interaction features before the activation function."""

    gram_values: Tensor
    gram_between: Tensor

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__(spec, eps)
        n, u, g = spec.features_in, n_features(spec.values), n_features(spec.interactions)
        self.register_buffer("gram_values", torch.zeros(u, u))
        self.register_buffer("gram_between", torch.zeros(n, u))
        self.W_value = nn.Parameter(torch.zeros(n, spec.values))
        self.b_value = nn.Parameter(torch.zeros(spec.values))
        self.W_features = nn.Parameter(torch.zeros(n, spec.interactions))
        self.W_values = nn.Parameter(torch.zeros(u, spec.interactions))
        self.b_interaction = nn.Parameter(torch.zeros(spec.interactions))
        self.W_from_values = nn.Parameter(torch.zeros(u, spec.n_out))
        self.W_from_interactions = nn.Parameter(torch.zeros(g, spec.n_out))

    def forward(
        self,
        features: Shaped[Tensor, "batch pos *features"],
        patterns: Float[Tensor, "batch heads query key"],
    ) -> Step:
        """See `Block`."""
        spec, dtype = self.spec, self.dtype
        before = square(features, self.gram, dtype)
        read = product(features, self.W_value, dtype) / self._root(before)
        by_head = read.unflatten(-1, (spec.heads, -1)).transpose(1, 2)
        moved = times(patterns, by_head, dtype)
        values = activate(moved.transpose(1, 2).flatten(2) + self.b_value, spec.k_value)
        added = square(values, self.gram_values, dtype)
        across = (product(features, self.gram_between, dtype) * values).sum(-1, keepdim=True)
        between = self._root(before + 2 * across + added)
        read = product(features, self.W_features, dtype) + product(values, self.W_values, dtype)
        interactions = activate(read / between + self.b_interaction, spec.k_interaction)
        pre = product(values, self.W_from_values, dtype) + self._past(features)
        pre = pre + product(interactions, self.W_from_interactions, dtype)
        return Step(pre, values, interactions)


def build_block(spec: BlockSpec, eps: float) -> MatrixBlock | FeatureBlock:
    """An empty block of the form that its spec names."""
    return (MatrixBlock if spec.form == "matrix" else FeatureBlock)(spec, eps)
