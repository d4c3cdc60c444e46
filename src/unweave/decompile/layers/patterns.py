"""Where heads look, from query features and key features of a layer's features.

    c_t = topk( Q f_t / s_t + b )      e_s = topk( K f_s / s_s + b )
    score[h, t, s] = sum over a, b of c_a,t e_b,s T[a, b, h](t - s)

with T what a pair of features adds at a distance (`explicit.pairs`). Factored, T goes through the
heads' own d_head coordinates, which is the same function and faster.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unweave.decompile.explicit.pairs import Pairs
from unweave.decompile.layers.codes import activate, n_features, product
from unweave.decompile.layers.spec import PatternSpec
from unweave.dictionaries.kernels.sparse import product_dtype
from unweave.subject.scores import Scoring, pattern, scores


class FeaturePatterns(nn.Module):
    """The patterns of one block."""

    def __init__(
        self, spec: PatternSpec, features: int, heads: int, kv_heads: int, d_head: int
    ) -> None:
        super().__init__()
        self.spec, self._features = spec, features
        self.W_query = nn.Parameter(torch.zeros(features, spec.queries))
        self.b_query = nn.Parameter(torch.zeros(spec.queries))
        self.W_key = nn.Parameter(torch.zeros(features, spec.keys))
        self.b_key = nn.Parameter(torch.zeros(spec.keys))
        self.queries = nn.Parameter(torch.zeros(n_features(spec.queries), heads, d_head))
        self.keys = nn.Parameter(torch.zeros(n_features(spec.keys), kv_heads, d_head))

    def codes(
        self, features: Shaped[Tensor, "batch pos *features"], scale: Float[Tensor, "batch pos 1"]
    ) -> tuple[Float[Tensor, "batch pos queries"], Float[Tensor, "batch pos keys"]]:
        """Query features and key features at every position, constants included."""
        exact = self.b_query.dtype
        dtype = product_dtype() if self.training and exact == torch.float32 else exact
        asked = product(features, self.W_query, dtype) / scale + self.b_query
        offered = product(features, self.W_key, dtype) / scale + self.b_key
        return activate(asked, self.spec.k_query), activate(offered, self.spec.k_key)

    def forward(
        self,
        features: Shaped[Tensor, "batch pos *features"],
        scale: Float[Tensor, "batch pos 1"],
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads query key"]:
        """Factored, through the heads' own coordinates."""
        asked, offered = self.codes(features, scale)
        q = torch.einsum("bta,ahd->bthd", asked, self.queries)
        k = torch.einsum("bsa,ahd->bshd", offered, self.keys)
        return pattern(scores(q, k, scoring))

    @torch.no_grad()
    def explicit(
        self,
        features: Shaped[Tensor, "batch pos *features"],
        scale: Float[Tensor, "batch pos 1"],
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads query key"]:
        """The same from the weights of pairs of features that are on."""
        asked, offered = self.codes(features, scale)
        pairs = pairs_of(self.queries.detach(), self.keys.detach(), scoring)
        k_query, k_key = self.spec.k_query + 2, self.spec.k_key + 2
        rows = [
            pairs.scores(_on(c, k_query), _on(e, k_key))
            for c, e in zip(asked, offered, strict=True)
        ]
        return pattern(torch.stack(rows))


def _on(code: Float[Tensor, "pos features"], k: int) -> tuple[Tensor, Tensor]:
    """The features that are on and how strongly."""
    strength, feature = code.topk(k, dim=-1)
    return feature, strength


def pairs_of(
    queries: Float[Tensor, "queries heads d_head"],
    keys: Float[Tensor, "keys kv_heads d_head"],
    scoring: Scoring,
) -> Pairs:
    """What pairs of features add to scores, as complex planes that positions turn."""
    planes = 0 if scoring.theta is None else len(scoring.theta)
    still = torch.zeros(queries.shape[-1] - 2 * planes)
    theta = still if scoring.theta is None else torch.cat([scoring.theta.float(), still])
    # Scaled rotary kinds (YaRN) lengthen what they turn: by the cosine of angle zero.
    size = 1.0 if scoring.cos is None else float(scoring.cos[0, 0])
    return Pairs(_planes(queries, planes, size), _planes(keys, planes, size), theta, scoring.scale)


def _planes(x: Tensor, planes: int, size: float) -> Tensor:
    turned, rest = x[..., : 2 * planes], x[..., 2 * planes :]
    low, high = turned.chunk(2, -1)
    pairs = torch.complex(low.contiguous(), high.contiguous()) * size
    return torch.cat([pairs, torch.complex(rest, torch.zeros_like(rest))], -1)
