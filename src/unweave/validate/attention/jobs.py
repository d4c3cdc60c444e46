"""Does a job do what its label says? It is taken out of the scores and the pattern is looked at.

A job is a mask over (query feature, key feature, head). Its score is what the pairs under the mask
contribute; without it, the pattern is the softmax of the subject's own score less that. Nothing
else changes: what the features get wrong stays in. A label is a kind of pair of positions
(`pair_kinds`), chosen on text of its own. It holds if, on other text, attention to pairs of the
kind falls, more than to pairs that match them, and more than when as much of other pairs' scores
is taken out instead.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import (
    FeatureReader,
    scores_in_features,
)
from unweave.subject import Subject
from unweave.subject.scores import pattern, scores
from unweave.validate.attention.pair_kinds import PairKind, marked, matched
from unweave.validate.bootstrap import BootstrapSettings, Interval, ratio_interval

JobMask = Float[Tensor, "queries keys heads"]
_ROWS = 16


class Seen(NamedTuple):
    """Patterns with and without a job."""

    whole: Float[Tensor, "rows heads query key"]
    """The subject's own."""
    without: Float[Tensor, "rows heads query key"]
    """With the job taken out of the scores."""


class JobEffect(NamedTuple):
    """What taking a job out does to one kind of pair; falls are shares of the attention there."""

    label: str
    """The kind."""
    attention: float
    """Attention per query to pairs of the kind before, over the job's heads by loading."""
    fall: Interval
    """Of attention to pairs of the kind."""
    matched_fall: Interval
    """Of attention to pairs that match them."""
    other_fall: Interval
    """Of attention to pairs of the kind when as much of other entries is taken out instead."""

    @property
    def holds(self) -> bool:
        """Whether the job does what the label says: every interval is clear of its control's."""
        return self.fall.low > max(self.matched_fall.high, self.other_fall.high, 0.0)


@torch.no_grad()
def patterns_without(
    subject: Subject,
    reader: FeatureReader,
    tokens: Int[Tensor, "rows pos"],
    mask: JobMask,
) -> Seen:
    """The patterns of the reader's block, whole and without the pairs under a mask."""
    block = f"blocks.{reader.transcoder.spec.layer}.attn"
    names = [reader.transcoder.spec.site, f"{block}.q", f"{block}.k"]
    whole, without = [], []
    for rows in tokens.split(_ROWS):
        found = subject.run(rows, capture=names, logits=False).sites
        x, q, k = (found[name].float() for name in names)
        true = scores(q, k, reader.basis.scoring)
        taken = scores_in_features(reader.code(x), reader.basis, mask)
        whole.append(pattern(true))
        without.append(pattern(true - taken))
    return Seen(torch.cat(whole), torch.cat(without))


@torch.no_grad()
def loss_without(
    subject: Subject,
    reader: FeatureReader,
    tokens: Int[Tensor, "rows pos"],
    seen: Seen | None,
) -> Float[Tensor, "rows pos-1"]:
    """Cross-entropy of each next token, nats, with the patterns of one block as `seen` has them
    without a job; with None, of the subject as it is."""
    site = f"blocks.{reader.transcoder.spec.layer}.attn.pattern"
    found = []
    for first, rows in enumerate(tokens.split(_ROWS)):
        at = slice(first * _ROWS, first * _ROWS + len(rows))
        replace = {} if seen is None else {site: seen.without[at]}
        logits = subject.run(rows, replace=replace).logits
        assert logits is not None
        log = logits[:, :-1].float().log_softmax(-1)
        found.append(-log.gather(-1, rows[:, 1:, None])[..., 0])
    return torch.cat(found)


def label_job(
    seen: Seen,
    kinds: Mapping[str, PairKind],
    tokens: Int[Tensor, "rows pos"],
    heads: Float[Tensor, " heads"],
) -> tuple[str, dict[str, float]]:
    """The kind that a job's work is most of: by the harmonic mean of how much of the attention
    that goes away is on pairs of the kind, and how much of the attention to them goes away.

    Gives that kind and the score of each; heads count by their loadings.
    """
    before, gone = (_by_heads(x, heads) for x in (seen.whole, (seen.whole - seen.without).relu()))
    found = {}
    for name, kind in kinds.items():
        mine = marked(kind, tokens)
        here = float(gone[mine].sum())
        precise = here / max(float(gone[:, 1:].sum()), 1e-12)
        complete = here / max(float(before[mine].sum()), 1e-12)
        found[name] = 2 * precise * complete / max(precise + complete, 1e-12)
    return max(found, key=lambda name: found[name]), found


def job_effect(
    seen: Seen,
    others: Sequence[Seen],
    kind: PairKind,
    tokens: Int[Tensor, "rows pos"],
    heads: Float[Tensor, " heads"],
    settings: BootstrapSettings | None = None,
) -> JobEffect:
    """What a job and random others in its place do to pairs of a kind; rows are resampled."""
    mine = marked(kind, tokens).float()
    queries = float(mine.any(2).sum())
    before = float((_by_heads(seen.whole, heads) * mine).sum())
    # Every other choice of entries is one more reading of the same rows.
    stacked = Seen(*(torch.cat([other[i] for other in others], 1) for i in range(2)))
    return JobEffect(
        kind.name,
        before / max(queries, 1.0),
        _fall(seen, mine, heads, settings),
        _fall(seen, matched(kind, tokens), heads, settings),
        _fall(stacked, mine, heads.repeat(len(others)) / len(others), settings),
    )


def other_entries(importance: JobMask, mask: JobMask, job: JobMask, *, seed: int) -> JobMask:
    """Entries of a mask outside a job, drawn until they contribute as much to scores as it does.

    Gives a mask again; where there is not as much outside, it is all there is.
    """
    target = float((importance * job).sum())
    outside = (mask - job).clamp_min(0).flatten()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(outside), generator=generator)
    worth = (importance.flatten() * outside)[order].cumsum(0)
    chosen = order[: int((worth < target).sum()) + 1]
    found = torch.zeros_like(outside)
    found[chosen] = outside[chosen]
    return found.view_as(mask)


def score_share(
    reader: FeatureReader,
    x: Float[Tensor, "rows pos d_in"],
    true: Float[Tensor, "rows heads query key"],
    mask: JobMask,
) -> float:
    """Share of the variance of the subject's scores that the pairs under a mask account for.

    Scores are taken less their mean over the keys that the query sees, since a softmax sees no
    more of them. 1 is all, 0 what no pairs at all would get; it may be negative.
    """
    made = scores_in_features(reader.code(x), reader.basis, mask)
    left, whole = (_centred(s).square().sum() for s in (true - made, true))
    return 1 - float(left / whole)


def _centred(scores: Tensor) -> Tensor:
    n = scores.shape[-1]
    seen = torch.ones(n, n).tril()
    mean = (scores * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)
    return (scores - mean) * seen


def _by_heads(x: Float[Tensor, "rows heads query key"], heads: Tensor) -> Tensor:
    return torch.einsum("rhqk,h->rqk", x, heads.to(x.dtype))


def _fall(seen: Seen, where: Tensor, heads: Tensor, settings: BootstrapSettings | None) -> Interval:
    """By how much attention falls there, as a share of what there was."""
    before, after = (
        (_by_heads(x, heads) * where).sum((1, 2)).double().numpy()
        for x in (seen.whole, seen.without)
    )
    return ratio_interval(np.asarray(before - after), np.asarray(before), settings)
