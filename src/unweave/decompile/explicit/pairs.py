"""What pairs of a query feature and a key feature add to a head's score.

A head's coordinates i and i + d/2 are one complex number, which position p turns by p theta_i; so

    T[a, b, h](t - s) = scale * Re sum_i q[a, h, i] conj(k[b, g(h), i]) exp(1j (t - s) theta_i)
    score[h, t, s] = sum over a on at t, b on at s of c_a c_b T[a, b, h](t - s)

where each part's offset and its output at a start token count as features too (the curves over
distance are those of `dictionaries.attention.feature_scores`). The weights of the pairs that are on
are made when they are needed: all of them, at all distances, would be F_Q x F_K x heads x positions
numbers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from unweave.dictionaries.part import Part
from unweave.subject.scores import Scoring

ROWS_AT_ONCE = 16
"""Query positions whose pairs exist at once."""


@dataclass(frozen=True)
class Pairs:
    """Query features against key features of one layer."""

    queries: Complex[Tensor, "queries heads planes"]
    """What query features write, both constants at the end."""
    keys: Complex[Tensor, "keys kv_heads planes"]
    """What key features write, both constants at the end."""
    theta: Float[Tensor, " planes"]
    """Radians a plane is turned from one position to the next."""
    scale: float
    """What products are multiplied by."""

    def scores(
        self,
        query: tuple[Int[Tensor, "pos on_q"], Float[Tensor, "pos on_q"]],
        key: tuple[Int[Tensor, "pos on_k"], Float[Tensor, "pos on_k"]],
    ) -> Float[Tensor, "heads pos pos"]:
        """Scores of one row from what is on at its positions."""
        (a, c_a), (b, c_b) = query, key
        n, heads = len(a), self.queries.shape[1]
        group = heads // self.keys.shape[1]
        at = torch.arange(n)
        out = self.theta.new_empty(heads, n, n)
        for start in range(0, n, ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            apart = (at[rows, None] - at)[:, :, None] * self.theta
            turned = torch.polar(torch.ones_like(apart), apart)
            for head in range(heads):
                q, k = self.queries[a[rows], head], self.keys[b, head // group].conj()
                weight = torch.einsum("tai,sbi,tsi->tsab", q, k, turned).real
                out[head, rows] = torch.einsum("ta,sb,tsab->ts", c_a[rows], c_b, weight)
        return out * self.scale


def pair_features(q: Part, k: Part, *, heads: int, kv_heads: int, scoring: Scoring) -> Pairs:
    """Pairs of two parts, `L7.q` and `L7.k`."""
    planes, theta = _planes_of(scoring, q.spec.d_out // heads)
    # Scaled rotary kinds (YaRN) lengthen what they turn: by the cosine of angle zero.
    size = 1.0 if scoring.cos is None else float(scoring.cos[0, 0])
    return Pairs(
        _complex(_written(q, heads), planes, size),
        _complex(_written(k, kv_heads), planes, size),
        theta,
        scoring.scale,
    )


def _written(part: Part, heads: int) -> Float[Tensor, "features heads d_head"]:
    W_dec = torch.cat([part.W_dec.detach(), part.b_dec.detach()[None]]) / part.spec.output_scale
    return torch.cat([W_dec, part.start_output[None]]).unflatten(1, (heads, -1))


def _planes_of(scoring: Scoring, d_head: int) -> tuple[int, Tensor]:
    """How many planes are turned, and the angles of these and of what is not turned."""
    if scoring.theta is None:
        return 0, torch.zeros(d_head)
    planes = len(scoring.theta)
    return planes, torch.cat([scoring.theta.float(), torch.zeros(d_head - 2 * planes)])


def _complex(x: Tensor, planes: int, size: float) -> Tensor:
    """The first 2 `planes` coordinates paired; each of the others a real number of its own."""
    turned, rest = x[..., : 2 * planes], x[..., 2 * planes :]
    low, high = turned.chunk(2, -1)
    pairs = torch.complex(low.contiguous(), high.contiguous()) * size
    return torch.cat([pairs, torch.complex(rest, torch.zeros_like(rest))], -1)
