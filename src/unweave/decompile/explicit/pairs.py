"""What pairs of a query feature and a key feature add to a head's score.

A head's coordinates i and i + d/2 are one complex number, which position p turns by p theta_i; so

    T[a, b, h](t - s) = scale * Re sum_i q[a, h, i] conj(k[b, g(h), i]) exp(1j (t - s) theta_i)
    score[h, t, s] = sum over a on at t, b on at s of c_a c_b T[a, b, h](t - s)

where each part's offset and its output at a start token count as features too (the curves over
distance are those of `dictionaries.attention.feature_scores`). The sum runs over the query's
features first, which gives what every key feature would add to the scores of this one query; then
over the features that are on at each key; the angles come last. Products of pairs are made when
they are needed: kept, they would be F_Q x F_K x heads x d_head numbers a layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Complex, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

QUERIES_AT_ONCE = 128
"""Query positions whose sums exist at once."""
PRODUCTS_AT_ONCE = 1 << 25
"""Products of pairs that exist at once, 128 MB; heads take turns where there are more."""

_Queries = tuple[Int[Tensor, "*batch queries on_q"], Float[Tensor, "*batch queries on_q"]]
_Keys = tuple[Int[Tensor, "*batch keys on_k"], Float[Tensor, "*batch keys on_k"]]


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

    def scores(self, query: _Queries, key: _Keys) -> Float[Tensor, "*batch heads queries keys"]:
        """Scores from what is on, as features and strengths [..., pos, on].

        The last query is at the position of the last key. Scores of keys behind their query are
        not all computed, and hold 0 where they are not.
        """
        batch = query[0].shape[:-2]
        (a, c_a), (b, c_b) = ([t.reshape(-1, *t.shape[-2:]) for t in one] for one in (query, key))
        rows, new = a.shape[:2]
        every, heads = b.shape[1], self.queries.shape[1]
        out = self.theta.new_zeros(rows * new, heads, every)
        a, c_a = a.flatten(0, 1), c_a.flatten(0, 1)
        for some in torch.arange(rows * new).split(QUERIES_AT_ONCE):
            row, at = some // new, every - new + some % new
            mine, last = slice(int(row[0]), int(row[-1]) + 1), int(at.max()) + 1
            keys = b[mine, :last], c_b[mine, :last]
            out[some, :, :last] = self._block((a[some], c_a[some]), keys, row - row[0], at)
        return out.view(*batch, new, heads, every).transpose(-3, -2) * self.scale

    def _block(
        self,
        query: tuple[Int[Tensor, "queries on_q"], Float[Tensor, "queries on_q"]],
        key: tuple[Int[Tensor, "rows pos on_k"], Float[Tensor, "rows pos on_k"]],
        row: Int[Tensor, " queries"],
        at: Int[Tensor, " queries"],
    ) -> Float[Tensor, "queries heads pos"]:
        """Scores of queries that stand in some rows at some positions."""
        asking, a = query[0].unique(return_inverse=True)
        asked, b = key[0].unique(return_inverse=True)
        # What query t sums to lies behind what query t - 1 sums to.
        b = b[row] + (torch.arange(len(row)) * len(asked))[:, None, None]
        at_key, strength = b.flatten(0, 1), key[1][row].flatten(0, 1)
        turned = self._turned(at[:, None] - torch.arange(key[0].shape[1]))
        out = []
        for heads in self._turns(len(asking) * len(asked)):
            group = self.queries.shape[1] // self.keys.shape[1]
            q, k = self.queries[asking][:, heads], self.keys[asked][:, heads // group]
            pair = torch.view_as_real(q[:, None] * k.conj()).flatten(1)
            adds = F.embedding_bag(a, pair, mode="sum", per_sample_weights=query[1])
            adds = adds.view(len(row) * len(asked), -1)
            met = F.embedding_bag(at_key, adds, mode="sum", per_sample_weights=strength)
            met = met.view(len(row), -1, len(heads), *turned.shape[-2:])
            out.append(torch.einsum("tshpc,tspc->ths", met, turned))
        return torch.cat(out, 1)

    def _turns(self, pairs: int) -> tuple[Tensor, ...]:
        """Heads whose products of so many pairs exist at once."""
        a_head = pairs * 2 * self.queries.shape[2]
        return torch.arange(self.queries.shape[1]).split(max(1, PRODUCTS_AT_ONCE // a_head))

    def _turned(
        self, apart: Shaped[Tensor, "queries pos"]
    ) -> Float[Tensor, "queries pos planes 2"]:
        """What turns the real and the imaginary half of a product, at distances in positions."""
        angle = apart[:, :, None] * self.theta
        return torch.stack([angle.cos(), -angle.sin()], -1)


def as_planes(
    heads: Float[Tensor, "features heads d_head"], planes: int, stretch: float
) -> Complex[Tensor, "features heads planes"]:
    """The first 2 `planes` coordinates paired, which are turned; then the others, likewise."""
    turned, rest = heads[..., : 2 * planes], heads[..., 2 * planes :]
    rest = F.pad(rest, (0, rest.shape[-1] % 2))
    return torch.cat([_halves(turned) * stretch, _halves(rest)], -1)


def _halves(x: Float[Tensor, "features heads two_planes"]) -> Tensor:
    low, high = x.chunk(2, -1)
    return torch.complex(low.contiguous(), high.contiguous())
