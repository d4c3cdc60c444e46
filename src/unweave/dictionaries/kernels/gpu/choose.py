"""Exact selection of latents on a GPU whose pre-activations never reach its memory.

The K largest of many numbers lie in the K groups with the largest maxima: whoever is in another
group is exceeded in K of them. So the first product keeps maxima alone, [rows, latents / g]; the K
best groups (k a row, or rows k of a batch) are multiplied once more, and the choice is made among
their K g members. Unlike a bound with a list of whoever exceeds it, this needs no guess of how
long the list will be and no retry, and ties cannot overflow it. Nothing is written by two programs
and ties are broken by place, so that the same input gives the same bits. Two products may differ
in the last bit of float32, which can decide between two latents that are that close.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.gpu.groups import Tiles, group_maxima, members
from unweave.dictionaries.kernels.gpu.rank import top_places
from unweave.dictionaries.kernels.select import Selection, largest_places

GROUPS = (16, 32, 64, 128)
"""Sizes of a group: tensor cores multiply sixteen latents at least."""


def group_for(n: int, k: int) -> int | None:
    """Latents in a group: n / g maxima and k g members are ranked, the fewest near sqrt(n / k).

    None where a row has not k groups, so many latents being chosen that a dense product is right.
    """
    possible = [g for g in GROUPS if -(-n // g) >= k]
    return min(possible, key=lambda g: abs(g - (n / k) ** 0.5), default=None)


def largest(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    k: int,
    group: int,
    *,
    signed: bool = False,
    tiles: Tiles | None = None,
) -> Selection:
    """The k largest `W x + b` of each row; with `signed`, the k largest in absolute value."""
    rows = len(x)
    maxima = group_maxima(x, W, b, group, signed=signed, tiles=tiles)
    best = top_places(maxima, k)
    row = torch.arange(rows, device=x.device).repeat_interleave(k)
    scores = members(x, W, b, row, best.reshape(-1), group, tiles=tiles).view(rows, k * group)
    # A place past the last latent holds minus infinity, which is no large absolute value.
    ranked = torch.where(scores > -torch.inf, scores.abs(), scores) if signed else scores
    place = top_places(ranked, k)
    latent = best.gather(1, place // group) * group + place % group
    return Selection(Support.from_topk(latent, len(W)), scores.gather(1, place).reshape(-1))


def largest_of_batch(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    k: int,
    group: int,
    *,
    tiles: Tiles | None = None,
) -> Selection:
    """The `rows * k` largest positive `W x + b` of the whole batch (BatchTopK)."""
    maxima = group_maxima(x, W, b, group, tiles=tiles)
    pair = largest_places(maxima.view(-1), len(x) * k).sort().values
    row, which = pair // maxima.shape[1], pair % maxima.shape[1]
    scores = members(x, W, b, row, which, group, tiles=tiles).view(-1)
    place = largest_places(scores, len(x) * k).sort().values
    return _ragged(row, which, scores, place, len(x), len(W), group)


def above(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    threshold: Float[Tensor, "*latents"],
    group: int = 16,
    *,
    tiles: Tiles | None = None,
) -> Selection:
    """Every `W x + b` that exceeds its latent's threshold."""
    floor = threshold.to(torch.float32).expand(len(W))
    excess = group_maxima(x, W, b, group, floor=floor, tiles=tiles)
    row, which = (excess > 0).nonzero(as_tuple=True)
    scores = members(x, W, b, row, which, group, tiles=tiles)
    latent = which[:, None] * group + torch.arange(group, device=x.device)
    over = scores > floor[latent.clamp_max(len(W) - 1)]
    place = over.view(-1).nonzero()[:, 0]
    return _ragged(row, which, scores.view(-1), place, len(x), len(W), group)


def _ragged(
    row: Int[Tensor, " pairs"],
    which: Int[Tensor, " pairs"],
    scores: Float[Tensor, " members"],
    place: Int[Tensor, " active"],
    rows: int,
    n: int,
    group: int,
) -> Selection:
    """Chosen members of pairs that stand in the order of rows."""
    pair = place // group
    counts = torch.bincount(row[pair], minlength=rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    latent = which[pair] * group + place % group
    return Selection(Support(offsets, latent, n), scores[place])
