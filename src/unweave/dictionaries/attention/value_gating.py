"""Values as features that key features call for (Wynroe & Sharkey 2024, the OV side).

What a key position offers to a head is read off the key features that are active there, and moved
along the subject's own pattern:

    u[s] = relu(e[s] M + m)                       value features, from key features e
    z^[t, h] = sum_s P[t, s, h] (u[s] W_dec[:, h] + b_dec[h])

So it is asked how much of what a block moves is known from the features that say where it looks.
What is not known is no fault of training alone: keys and values are different projections, and
nothing makes the features of one tell the other. `fit_linear` is the yardstick that needs no value
features: the best linear map from key features to values.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ValueGating(nn.Module):
    """Value features gated by key features; start it with `random_gating`."""

    M: Tensor
    m: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, n_keys: int, n_values: int, kv_heads: int, d_head: int) -> None:
        super().__init__()
        self.M = nn.Parameter(torch.zeros(n_keys, n_values))
        self.m = nn.Parameter(torch.zeros(n_values))
        self.W_dec = nn.Parameter(torch.zeros(n_values, kv_heads, d_head))
        self.b_dec = nn.Parameter(torch.zeros(kv_heads, d_head))

    def features(self, keys: Float[Tensor, "... keys"]) -> Float[Tensor, "... values"]:
        """Value features that active key features call for."""
        return torch.relu(keys @ self.M + self.m)

    def values(self, keys: Float[Tensor, "... keys"]) -> Float[Tensor, "... kv_heads d_head"]:
        """What each position offers."""
        u = self.features(keys)
        return (u @ self.W_dec.flatten(1)).unflatten(-1, self.b_dec.shape) + self.b_dec


def random_gating(
    n_keys: int, n_values: int, values: Float[Tensor, "rows kv_heads d_head"], *, seed: int
) -> ValueGating:
    """A gating that offers the mean value, its features in random directions."""
    gating = ValueGating(n_keys, n_values, *values.shape[1:])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        gating.M.copy_(torch.randn(gating.M.shape, generator=generator) * n_keys**-0.5)
        scale = values.std() * n_values**-0.5
        gating.W_dec.copy_(torch.randn(gating.W_dec.shape, generator=generator) * scale)
        gating.b_dec.copy_(values.mean(0))
    return gating


def move(
    pattern: Float[Tensor, "rows heads query key"],
    values: Float[Tensor, "rows key kv_heads d_head"],
) -> Float[Tensor, "rows query heads d_head"]:
    """Values moved along a pattern, heads of a group sharing theirs."""
    values = values.repeat_interleave(pattern.shape[1] // values.shape[2], 2)
    return torch.einsum("rhqk,rkhd->rqhd", pattern, values)


def fit_linear(
    keys: Float[Tensor, "rows keys"],
    values: Float[Tensor, "rows kv_heads d_head"],
    *,
    ridge: float = 1e-2,
) -> tuple[Float[Tensor, "keys kv_heads d_head"], Float[Tensor, "kv_heads d_head"]]:
    """The linear map from key features to values with the least squared error, and its offset.

    `ridge` is relative to the mean square of a key feature.
    """
    centre, mean = keys.mean(0), values.mean(0)
    x, y = (keys - centre).double(), (values - mean).flatten(1).double()
    gram = x.T @ x
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, x.T @ y).to(values.dtype).unflatten(1, values.shape[1:])
    return weights, mean - torch.einsum("b,bhd->hd", centre, weights)


def unexplained(
    made: Float[Tensor, "... heads d_head"], true: Float[Tensor, "... heads d_head"]
) -> float:
    """Share of the variance of what heads bring that is not made (FVU)."""
    left = (true - made).square().sum()
    return float(left / (true - true.flatten(0, -3).mean(0)).square().sum())
