"""Attention scores in the feature basis, rotary positions included.

Let a query be made of features, q[t, h] = sum_a c[t, a] d[a, h] + b_Q[h], and a key likewise,
k[s, g] = sum_b e[s, b] f[b, g] + b_K[g], both before rotary positions. A bias is a feature that is
always active with strength 1, so take it among the features (`with_bias`). Let R_p turn plane j,
coordinates (j, j + d/2), by the angle p theta_j. The score of a query at t and a key at s is

    scale <R_t q, R_s k> = scale <R_(t-s) q, k>     since R_s^T R_t = R_(t-s)
                         = sum_(a, b) c[t, a] e[s, b] T[a, b, h](t - s),
    T[a, b, h](D) = scale <R_D d[a, h], f[b, g(h)]>.

In one plane a turn by angle x takes (d1, d2) to (d1 cos x - d2 sin x, d2 cos x + d1 sin x), so

    T[a, b, h](D) = scale (rest + sum_j A_j cos(D theta_j) + B_j sin(D theta_j)),
    A_j = d1 f1 + d2 f2,    B_j = d1 f2 - d2 f1,

with `rest` the product of the coordinates that are not turned. A pair of features thus has, for
each head, a curve over distance made of at most d/2 waves of the network's own frequencies, and a
score is a sum of such curves: exact, whatever the features.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject.rotary import rotate
from unweave.subject.scores import Scoring


class Waves(NamedTuple):
    """Curves over distance of all pairs of some query features and some key features."""

    cosine: Float[Tensor, "queries keys heads planes"]
    """A_j, the scale included."""
    sine: Float[Tensor, "queries keys heads planes"]
    """B_j, the scale included."""
    rest: Float[Tensor, "queries keys heads"]
    """What does not depend on distance, the scale included."""
    theta: Float[Tensor, " planes"]
    """Radians per position of each plane."""

    def at(
        self, distances: Int[Tensor, " distances"]
    ) -> Float[Tensor, "queries keys heads distances"]:
        """T at distances query position - key position."""
        angle = distances[None].to(self.theta.dtype) * self.theta[:, None]
        waves = self.cosine @ angle.cos() + self.sine @ angle.sin()
        return waves + self.rest[..., None]


def with_bias(
    directions: Float[Tensor, "features heads d_head"], bias: Float[Tensor, "heads d_head"]
) -> Float[Tensor, "features+1 heads d_head"]:
    """The bias as one more feature, the last; give it the strength 1 everywhere."""
    return torch.cat([directions, bias[None]])


def waves(
    queries: Float[Tensor, "queries heads d_head"],
    keys: Float[Tensor, "keys kv_heads d_head"],
    scoring: Scoring,
) -> Waves:
    """Coefficients of every pair; queries * keys * heads * d_head numbers, so choose some."""
    keys = _for_each_head(queries, keys)
    planes = 0 if scoring.theta is None else len(scoring.theta)
    theta = queries.new_zeros(0) if scoring.theta is None else scoring.theta
    # Scaled rotary kinds (YaRN) lengthen what they turn: by cos of angle zero.
    size = 1.0 if scoring.cos is None else float(scoring.cos[0, 0]) ** 2
    d1, d2 = (part[:, None] for part in _planes(queries, planes))
    f1, f2 = (part[None] for part in _planes(keys, planes))
    still = torch.einsum("ahd,bhd->abh", queries[..., 2 * planes :], keys[..., 2 * planes :])
    return Waves(
        scoring.scale * size * (d1 * f1 + d2 * f2),
        scoring.scale * size * (d1 * f2 - d2 * f1),
        scoring.scale * still,
        theta,
    )


def feature_scores(
    queries: Float[Tensor, "queries heads d_head"],
    keys: Float[Tensor, "keys kv_heads d_head"],
    scoring: Scoring,
    distance: int,
) -> Float[Tensor, "queries keys heads"]:
    """T of every pair at one distance, query position - key position: the score of a query feature
    and a key feature of strength 1 each.

    Raises:
        IndexError: the distance is negative or beyond what `scoring` was made for.
    """
    keys = _for_each_head(queries, keys)
    if scoring.cos is not None and scoring.sin is not None:
        cos, sin = (turn[distance, None] for turn in (scoring.cos, scoring.sin))
        none = torch.zeros_like(sin)
        queries = rotate(queries, cos, sin)
        keys = rotate(keys, torch.full_like(cos, float(scoring.cos[0, 0])), none)
    return torch.einsum("ahd,bhd->abh", queries, keys) * scoring.scale


def _planes(x: Tensor, planes: int) -> tuple[Tensor, Tensor]:
    return x[..., :planes], x[..., planes : 2 * planes]


def _for_each_head(queries: Tensor, keys: Tensor) -> Tensor:
    """Keys of grouped heads, once for each head that reads them."""
    return keys.repeat_interleave(queries.shape[1] // keys.shape[1], 1)
