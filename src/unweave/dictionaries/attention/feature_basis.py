"""The features that fire in some text, and the attention scores that any of their pairs make.

Text is coded densely over the few features that fire in it, the bias among them. All scores of a
row are then a sum over distances D of products c[t] T(D) e[t - D], with T as `feature_scores` has
it; a mask over (query feature, key feature, head) leaves pairs out.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.attention.feature_scores import feature_scores, with_bias
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.subject.scores import Scoring, scores

BIAS, START = -1, -2
"""Numbers that stand for no feature: what is always there, and the key at position 0."""


class QKBasis(NamedTuple):
    """What each query feature and each key feature writes, and how scores come of it."""

    queries: Float[Tensor, "queries heads d_head"]
    """Before rotary positions."""
    keys: Float[Tensor, "keys kv_heads d_head"]
    """Before rotary positions."""
    query_ids: Int[Tensor, " queries"]
    """Number of each in its transcoder, or BIAS."""
    key_ids: Int[Tensor, " keys"]
    """Number of each in its transcoder, or BIAS or START."""
    scoring: Scoring
    """Scale and rotary positions."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the job tensor: query features, key features, heads."""
        return len(self.queries), len(self.keys), self.queries.shape[1]

    def at(self, distance: int) -> Float[Tensor, "queries keys heads"]:
        """T at one distance."""
        return feature_scores(self.queries, self.keys, self.scoring, distance)


class QKCodes(NamedTuple):
    """Strengths of a basis's features in rows of text."""

    queries: Float[Tensor, "rows pos queries"]
    """Of query features; the bias is 1 everywhere."""
    keys: Float[Tensor, "rows pos keys"]
    """Of key features; at position 0 the start alone, where there is one."""

    def rows(self, start: int, stop: int) -> "QKCodes":
        """Some of the rows."""
        return QKCodes(self.queries[start:stop], self.keys[start:stop])


def code_all(transcoder: QKTranscoder, x: Float[Tensor, "rows pos d_in"]) -> QKCodes:
    """Codes over all features: query features and the bias; key features, the bias, the start.

    At position 0 the query is the bias and the key the start, as in `QKTranscoder.run`.
    """
    flat, shape = x.flatten(0, 1), x.shape[:2]
    queries, keys = (
        transcoder.encode(flat, which).dense().unflatten(0, shape) for which in ("Q", "K")
    )
    later = queries.new_ones(*shape, 1)
    later[:, 0] = 0
    return QKCodes(
        torch.cat([queries * later, torch.ones_like(later)], -1),
        torch.cat([keys * later, later, 1 - later], -1),
    )


def all_features(transcoder: QKTranscoder, scoring: Scoring) -> QKBasis:
    """The basis that `code_all` codes in."""
    with torch.no_grad():
        return QKBasis(
            with_bias(transcoder.W_dec_Q, transcoder.b_dec_Q),
            with_bias(with_bias(transcoder.W_dec_K, transcoder.b_dec_K), transcoder.start_key),
            _numbered(len(transcoder.W_dec_Q), BIAS),
            _numbered(len(transcoder.W_dec_K), BIAS, START),
            scoring,
        )


class FeatureReader(NamedTuple):
    """Codes text in the features of a transcoder that fire in some text."""

    transcoder: QKTranscoder
    """Whose features."""
    basis: QKBasis
    """Those that are kept, the bias and the start among them."""
    kept_q: Int[Tensor, " queries"]
    """Their places among all query features."""
    kept_k: Int[Tensor, " keys"]
    """Their places among all key features."""

    def code(self, x: Float[Tensor, "rows pos d_in"]) -> QKCodes:
        """Codes of rows that begin with the start token, from what the transcoder reads there."""
        return cut_codes(code_all(self.transcoder, x), self.kept_q, self.kept_k)


def reader_of(
    transcoder: QKTranscoder,
    scoring: Scoring,
    x: Float[Tensor, "rows pos d_in"],
    *,
    least: float,
) -> FeatureReader:
    """Keep the features that fire at a share of at least `least` of the positions of `x`."""
    basis, codes = all_features(transcoder, scoring), code_all(transcoder, x)
    often_q, often_k = ((c != 0).float().mean((0, 1)) >= least for c in codes)
    kept_q = (often_q | (basis.query_ids < 0)).nonzero()[:, 0]
    kept_k = (often_k | (basis.key_ids < 0)).nonzero()[:, 0]
    return FeatureReader(transcoder, cut_basis(basis, kept_q, kept_k), kept_q, kept_k)


def cut_codes(codes: QKCodes, kept_q: Tensor, kept_k: Tensor) -> QKCodes:
    """The chosen features alone."""
    return QKCodes(codes.queries[..., kept_q], codes.keys[..., kept_k])


def cut_basis(basis: QKBasis, kept_q: Tensor, kept_k: Tensor) -> QKBasis:
    """The chosen features alone."""
    ids = basis.query_ids[kept_q], basis.key_ids[kept_k]
    return QKBasis(basis.queries[kept_q], basis.keys[kept_k], *ids, basis.scoring)


def scores_in_features(
    codes: QKCodes, basis: QKBasis, mask: Float[Tensor, "queries keys heads"]
) -> Float[Tensor, "rows heads pos pos"]:
    """Scores of every query and every key not after it, by the pairs that the mask lets through.

    Differentiable in the mask. What stands at keys after their query means nothing.
    """
    if not mask.requires_grad:
        codes, basis, mask = _needed(codes, basis, mask)
    n = codes.queries.shape[1]
    lines = [_line(codes, distance, basis.at(distance) * mask) for distance in range(n)]
    at = torch.arange(n, device=mask.device)
    apart = (at[:, None] - at).clamp_min(0)
    # lines[D] has the scores of all queries with the key D before each.
    return torch.stack(lines, 1)[:, apart, at[:, None]].permute(0, 3, 1, 2)


def whole_scores(codes: QKCodes, basis: QKBasis) -> Float[Tensor, "rows heads pos pos"]:
    """The same with no pair left out, by way of queries and keys: much faster."""
    q = torch.einsum("rta,ahd->rthd", codes.queries, basis.queries)
    k = torch.einsum("rsb,bgd->rsgd", codes.keys, basis.keys)
    return scores(q, k, basis.scoring)


def coactivity(codes: QKCodes, distance: int) -> Float[Tensor, "queries keys"]:
    """Sum over positions of |strength of a query feature| |of a key feature that far before|."""
    n = codes.queries.shape[1]
    queries = codes.queries[:, distance:].abs().flatten(0, 1)
    return queries.T @ codes.keys[:, : n - distance].abs().flatten(0, 1)


def importance(codes: QKCodes, basis: QKBasis) -> Float[Tensor, "queries keys heads"]:
    """Mean over pairs of positions of the absolute score that each entry of T contributes."""
    rows, n, _ = codes.queries.shape
    total = codes.queries.new_zeros(basis.shape)
    for distance in range(n):
        total += basis.at(distance).abs() * coactivity(codes, distance)[..., None]
    return total / (rows * n * (n + 1) / 2)


def _needed(codes: QKCodes, basis: QKBasis, mask: Tensor) -> tuple[QKCodes, QKBasis, Tensor]:
    """Only the features of which the mask lets any pair through: most masks are of few."""
    through = mask != 0
    kept_q, kept_k = (through.any(2).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return (
        cut_codes(codes, kept_q, kept_k),
        cut_basis(basis, kept_q, kept_k),
        mask[kept_q][:, kept_k],
    )


def _line(
    codes: QKCodes, distance: int, table: Float[Tensor, "queries keys heads"]
) -> Float[Tensor, "rows pos heads"]:
    """Scores of each query with the key `distance` before it; 0 where there is none."""
    n = codes.queries.shape[1]
    queries, keys = codes.queries[:, distance:], codes.keys[:, : n - distance]
    reads = (queries @ table.flatten(1)).unflatten(-1, table.shape[1:])
    line = (keys[:, :, None] @ reads)[:, :, 0]
    return torch.nn.functional.pad(line, (0, 0, distance, 0))


def _numbered(count: int, *special: int) -> Tensor:
    return torch.cat([torch.arange(count), torch.tensor(special)])
