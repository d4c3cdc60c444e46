"""Why a head attended where it did: one score as a sum over pairs of features.

A query is a sum of parts, features with their strengths, a bias, and an error that no feature
holds; a key likewise. The score before the softmax is bilinear, so it is exactly the sum of what
each query part and each key part make together at their distance ("Tracing attention computation
through feature interactions", Anthropic 2025). A softmax sees only differences of scores, so "why
here rather than there" is asked of two keys: `contrast`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.circuits.latents import row_scale
from unweave.dictionaries.attention.feature_basis import BIAS, START
from unweave.dictionaries.attention.feature_scores import feature_scores
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder, Which
from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.scores import Scoring, scoring

ERROR = -3
"""Number that stands for what no feature holds."""
_NAMES = {BIAS: "bias", START: "start", ERROR: "error"}


class StreamCoder(NamedTuple):
    """A coder of a block's residual stream, at `resid_pre` or behind the norm at `attn.in`."""

    coder: Coder
    """Its latents are the features of queries and keys alike."""
    site: str
    """Where it reads and writes."""


Reader = QKTranscoder | StreamCoder


class Parts(NamedTuple):
    """What one head's query or key at one position is made of."""

    ids: Int[Tensor, " parts"]
    """Features, or BIAS, START, ERROR."""
    vectors: Float[Tensor, "parts d_head"]
    """What each brings, before rotary positions; they sum to the subject's own query or key."""


class Pair(NamedTuple):
    """One term of a score."""

    query: str
    """Number of the query feature, or "bias", "start" or "error"."""
    key: str
    """The same of the key."""
    value: float
    """What the two bring to the score together."""


class QKAttribution(NamedTuple):
    """A score, or a difference of two, taken apart."""

    query_ids: Int[Tensor, " queries"]
    """Rows."""
    key_ids: Int[Tensor, " keys"]
    """Columns."""
    contributions: Float[Tensor, "queries keys"]
    """They sum to the score."""

    @property
    def total(self) -> float:
        """The score before mask and softmax, or the difference of two."""
        return float(self.contributions.sum())

    def top(self, count: int = 10) -> list[Pair]:
        """The pairs that bring most, of either sign, the largest first."""
        order = self.contributions.abs().flatten().argsort(descending=True)[:count].tolist()
        width = len(self.key_ids)
        return [
            Pair(
                part_name(int(self.query_ids[at // width])),
                part_name(int(self.key_ids[at % width])),
                float(self.contributions.flatten()[at]),
            )
            for at in order
        ]

    @property
    def explained(self) -> float:
        """Share of the absolute contributions that has the error on neither side."""
        known = (self.query_ids != ERROR)[:, None] & (self.key_ids != ERROR)
        size = self.contributions.abs()
        return float(size[known].sum() / size.sum().clamp_min(1e-30))


def part_name(number: int) -> str:
    """A feature's number, or the word for what is none."""
    return _NAMES.get(number, str(number))


@torch.no_grad()
def attribute_scores(
    subject: Subject,
    layer: int,
    head: int,
    tokens: Int[Tensor, " pos"],
    query: int,
    keys: tuple[int, ...],
    reader: Reader,
) -> list[QKAttribution]:
    """The scores of one head, from one query position to each of some key positions.

    Raises:
        UserError: no such head, a key after its query, a coder of another place, or a layer whose
            scores are not products of its queries and keys.
    """
    if not 0 <= head < subject.n_heads or not all(0 <= k <= query < len(tokens) for k in keys):
        raise UserError(
            f"{subject.name} has heads 0 to {subject.n_heads - 1}, and a row of {len(tokens)} "
            f"has no head {head} that sees from position {query} back to {list(keys)}"
        )
    rule = scoring(subject, layer, len(tokens))
    there = _Row.read(subject, layer, tokens, reader)
    asks = there.parts("Q", head, query)
    return [attribute(asks, there.parts("K", head, key), rule, query - key) for key in keys]


def attribute(query: Parts, key: Parts, scoring: Scoring, apart: int) -> QKAttribution:
    """The score of a query and the key `apart` positions before it, part by part."""
    table = feature_scores(query.vectors[:, None], key.vectors[:, None], scoring, apart)
    return QKAttribution(query.ids, key.ids, table[..., 0])


def contrast(here: QKAttribution, there: QKAttribution) -> QKAttribution:
    """Why here rather than there: the score here less that there, by the same pairs.

    Both are of one query; a key feature that is active at one of the two places counts as zero at
    the other.
    """
    keys, place = torch.cat([here.key_ids, there.key_ids]).unique(return_inverse=True)
    both = torch.cat([here.contributions, -there.contributions], 1)
    found = both.new_zeros(len(here.query_ids), len(keys)).index_add(1, place, both)
    return QKAttribution(here.query_ids, keys, found)


class _Row(NamedTuple):
    """A row's vectors, and who reads them."""

    subject: Subject
    layer: int
    reader: Reader
    x: Float[Tensor, "pos d_in"]
    true: dict[str, Tensor]

    @classmethod
    def read(cls, subject: Subject, layer: int, tokens: Tensor, reader: Reader) -> "_Row":
        block = f"blocks.{layer}."
        site = reader.site if isinstance(reader, StreamCoder) else reader.spec.site
        if site not in (f"{block}attn.in", f"{block}resid_pre"):
            raise UserError(
                f"scores of block {layer} are made of what is read at {block}attn.in or "
                f"{block}resid_pre, and this coder reads {site}"
            )
        names = [site, f"{block}attn.q", f"{block}attn.k"]
        found = subject.run(tokens[None], capture=names, logits=False).sites
        x, q, k = (found[name][0].float() for name in names)
        return cls(subject, layer, reader, x, {"Q": q, "K": k})

    def parts(self, which: Which, head: int, position: int) -> Parts:
        """Of one head's query or key at one position."""
        group = head if which == "Q" else head // (self.subject.n_heads // self.subject.n_kv_heads)
        true = self.true[which][position, group]
        if isinstance(self.reader, StreamCoder):
            return self._of_stream(self.reader, which, head, position, true)
        return self._of_transcoder(self.reader, which, group, position, true)

    def _of_transcoder(
        self, reader: QKTranscoder, which: Which, group: int, position: int, true: Tensor
    ) -> Parts:
        if position == 0:
            first = reader.b_dec_Q if which == "Q" else reader.start_key
            return _closed([BIAS if which == "Q" else START], first[None, group], true)
        code = reader.encode(self.x[position, None], which)
        _, _, W_dec, b_dec = reader.side(which)
        features = W_dec[code.support.latent, group] * code.value[:, None]
        ids = [*code.support.latent.tolist(), BIAS]
        return _closed(ids, torch.cat([features, b_dec[None, group]]), true)

    def _of_stream(
        self, reader: StreamCoder, which: Which, head: int, position: int, true: Tensor
    ) -> Parts:
        x = self.x[position]
        features, ids, error = _stream_parts(reader.coder, x)
        weights = self.subject.attention_weights(self.layer)
        W = (weights.W_Q if which == "Q" else weights.W_K)[head].float()
        parts = self._through_norm(torch.cat([features, error[None]]), x, reader.site) @ W
        # Whatever the coder, the norm and the projection add whatever comes in.
        bias = true - parts.sum(0)
        return Parts(torch.tensor([*ids, ERROR, BIAS]), torch.cat([parts, bias[None]]))

    def _through_norm(self, parts: Tensor, x: Tensor, site: str) -> Tensor:
        """Parts of the stream as the projections read them, the norm's scale as it was."""
        if site.endswith("attn.in"):
            return parts
        if self.subject.norms_centre:
            parts, x = parts - parts.mean(-1, keepdim=True), x - x.mean()
        size = (x.square().mean() + self.subject.norm_eps).rsqrt()
        return parts * self.subject.norm_gain(self.layer, "attn").float() * size


def _stream_parts(coder: Coder, x: Float[Tensor, " d"]) -> tuple[Tensor, list[int], Tensor]:
    """What each active latent writes, their numbers, and what they and the offset leave over."""
    code = coder.encode(x[None])
    written = coder.directions().float()[code.support.latent] * code.value[:, None]
    written = written * row_scale(coder, x[None])
    known = written.sum(0)
    if not (isinstance(coder, Dictionary) and (coder.spec.skip or coder.spec.layer_norm)):
        known = coder.decode(code)[0]
    return written, code.support.latent.tolist(), x - known


def _closed(ids: list[int], vectors: Tensor, true: Tensor) -> Parts:
    """With the error that makes the parts sum to what the subject has."""
    error = true - vectors.sum(0)
    return Parts(torch.tensor([*ids, ERROR]), torch.cat([vectors, error[None]]))
