"""Choose the active latents of a batch, a tile of pre-activations at a time.

A scorer maps a tile of rows to what its latents are ranked by. Only one tile of scores exists at
once, but for the batch-wide choice, which has to see all of them.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.native import calls as native

TILE_ROWS = 512
"""Rows whose scores exist at once: 512 x 4608 floats stay in the last-level cache."""
_SAMPLE, _SAMPLE_ROWS = 1 << 16, 256

Scorer = Callable[[Tensor], Tensor]
"""`[tile, d_in]` to `[tile, latents]`, without gradients."""


class Selection(NamedTuple):
    """The chosen entries and the scores they were chosen for."""

    support: Support
    score: Float[Tensor, " active"]


@runtime_checkable
class Choosing(Protocol):
    """A scorer that finds its k largest scores without computing all of them."""

    def choose(self, x: Float[Tensor, "rows d_in"], k: int) -> Selection:
        """The k largest scores of each row, the same number for all rows."""
        ...


def largest(
    scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int, k: int, *, signed: bool = False
) -> Selection:
    """The k largest scores of each row; with `signed`, the k largest in absolute value."""
    if isinstance(scorer, Choosing) and not signed:
        return scorer.choose(x, k)
    if (found := gpu.largest(scorer, x, k, signed=signed)) is not None:
        return found
    latent = torch.empty(len(x), k, dtype=torch.long, device=x.device)
    score = torch.empty(len(x), k, dtype=_valued(x.dtype), device=x.device)
    for start in range(0, len(x), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        scores = scorer(x[tile])
        if native.able(scores):
            latent[tile], score[tile] = native.largest(scores, k, by_size=signed)
        else:
            latent[tile] = places = largest_in_rows(scores.abs() if signed else scores, k)
            score[tile] = scores.gather(1, places)
    return Selection(Support.from_topk(latent, n_latents), score.reshape(-1))


def _valued(dtype: torch.dtype) -> torch.dtype:
    """What scores are kept in: those that were multiplied in bfloat16 become float32."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def largest_in_rows(scores: Float[Tensor, "rows n"], k: int) -> Int[Tensor, "rows k"]:
    """Places of the k largest scores of each row, in no order, by torch's operations.

    The k largest lie in the k groups with the largest maxima: whoever is in another group is
    exceeded in k of them. Ranking maxima and then those groups' members takes two short sorts
    instead of a long one.
    """
    rows, n = scores.shape
    # n / g maxima and k g members are ranked: the fewest when g is near sqrt(n / k).
    group = _divisor(n, round((n / k) ** 0.5))
    if group == 1 or n // group < k:
        return scores.topk(k, dim=1, sorted=False).indices
    groups = n // group
    best = scores.view(rows, group, groups).amax(1).topk(k, dim=1, sorted=False).indices
    step = torch.arange(0, n, groups, device=scores.device)
    members = (best[:, None, :] + step[:, None]).view(rows, group * k)
    top = scores.gather(1, members).topk(k, dim=1, sorted=False).indices
    return members.gather(1, top)


def _divisor(n: int, near: int) -> int:
    """The divisor of n closest to `near`, within a factor of two; 1 where there is none."""
    found = [g for g in range(max(2, near // 2), 2 * near + 1) if n % g == 0]
    return min(found, key=lambda g: abs(g - near), default=1)


def largest_of_batch(
    scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int, k: int
) -> Selection:
    """The `rows * k` largest positive scores of the whole batch (BatchTopK)."""
    if (found := gpu.largest_of_batch(scorer, x, k)) is not None:
        return found
    if native.able(scorer(x[:1])):
        return _largest_of_tiles(scorer, x, n_latents, k)
    scores = torch.empty(len(x), n_latents, dtype=_valued(x.dtype), device=x.device)
    for start in range(0, len(x), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        scores[tile] = scorer(x[tile])
    place = largest_places(scores.view(-1), len(x) * k).sort().values
    row, latent = place // n_latents, place % n_latents
    counts = torch.bincount(row, minlength=len(x))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Selection(Support(offsets, latent, n_latents), scores.view(-1)[place])


def _largest_of_tiles(scorer: Scorer, x: Tensor, n_latents: int, k: int) -> Selection:
    """`largest_of_batch` a tile at a time: what a bound leaves of each is all that is kept.

    The bound is found in a sample of rows, so that somewhat more than `rows * k` scores exceed it.
    Should it have been too high, a lower one is tried, and zero in the end.
    """
    count = len(x) * k
    some = scorer(x[:: max(1, len(x) // _SAMPLE_ROWS)]).reshape(1, -1)
    for slack in (1.15, 2.0, 0.0):
        rank = round(slack * count * some.shape[1] / (len(x) * n_latents)) + 64
        bound = torch.zeros(())
        if slack and rank < some.shape[1]:
            bound = native.largest(some, rank, by_size=False)[1].min().clamp_min(0)
        found = above(scorer, x, bound)
        if len(found.score) >= count or not bound:
            break
    if len(found.score) <= count:
        return found
    kept = native.largest(found.score[None], count, by_size=False)[0][0]
    counts = torch.bincount(found.support.row[kept], minlength=len(x))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Selection(Support(offsets, found.support.latent[kept], n_latents), found.score[kept])


def largest_places(scores: Float[Tensor, " n"], count: int) -> Tensor:
    """Places of the `count` largest positive scores, in no order; fewer where fewer are positive.

    Exact, yet without sorting millions: a sample tells a threshold that somewhat more than `count`
    scores exceed, and only those are ranked.
    """
    stride = max(1, len(scores) // _SAMPLE) | 1  # odd: or it could meet the same few latents only
    sample = scores[::stride]
    for slack in (1.3, 3.0):
        rank = int(slack * count / stride) + 64
        if rank >= len(sample):
            break
        bound = sample.topk(rank, sorted=True).values[-1].clamp_min(0)
        candidates = (scores > bound).nonzero()[:, 0]
        if len(candidates) >= count or bound == 0:
            return _best(candidates, scores, count)
    return _best((scores > 0).nonzero()[:, 0], scores, count)


def above(
    scorer: Scorer, x: Float[Tensor, "rows d_in"], threshold: Float[Tensor, "*latents"]
) -> Selection:
    """Every score that exceeds its latent's threshold."""
    if (found := gpu.above(scorer, x, threshold)) is not None:
        return found
    latents, scores, counts = [], [], []
    n_latents = 0
    for start in range(0, max(len(x), 1), TILE_ROWS):
        tile = scorer(x[start : start + TILE_ROWS])
        n_latents = tile.shape[1]
        if native.able(tile):
            part = native.above(tile, threshold)
            latents.append(part.latent)
            scores.append(part.value)
            counts.append(part.counts)
            continue
        row, latent = (tile > threshold).nonzero(as_tuple=True)
        latents.append(latent)
        scores.append(tile[row, latent])
        counts.append(torch.bincount(row, minlength=len(tile)))
    ends = torch.cat(counts).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    return Selection(Support(offsets, torch.cat(latents), n_latents), torch.cat(scores))


def _best(candidates: Tensor, scores: Tensor, count: int) -> Tensor:
    if len(candidates) <= count:
        return candidates
    return candidates[scores[candidates].topk(count, sorted=False).indices]
