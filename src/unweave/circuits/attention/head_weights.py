"""To which heads a latent belongs: by its decoder's norms, and by what heads bring when it fires.

By weights (Kissane et al. 2024, 2406.17759), for latent i and head k of concatenated heads:

    h_ik = |W_dec[i, head k]| / sum_j |W_dec[i, head j]|

A decoder row says what a latent stands for, not what it reads, and knows nothing of how large a
head's output is when the latent fires. So the share of |w_i^k . z^k| at its firings stands beside
it; the two may disagree, and `agreement` says how far they do, beside latents exchanged at random.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.circuits.attention.direct import DirectAttribution
from unweave.circuits.attention.reading import Places
from unweave.dictionaries.code import Coder
from unweave.errors import UserError

Shares = Float[Tensor, "latents heads"]
"""How much of each latent each head has; rows sum to one, or are zero where nothing is known."""


def weight_shares(coder: Coder, heads: int) -> Shares:
    """Shares by the norms of decoder rows.

    Raises:
        UserError: a width that is not so many heads.
    """
    directions = coder.directions().float()
    if directions.shape[1] % heads:
        raise UserError(
            f"a dictionary of width {directions.shape[1]} is not made of {heads} heads: give one"
            " trained on a block's attn.z"
        )
    return _shares(directions.unflatten(1, (heads, -1)).norm(dim=2))


def active_shares(found: DirectAttribution, places: Places, latents: int) -> Shares:
    """Shares by what heads bring, in absolute value, summed over the places of a latent."""
    brought = found.by_head.abs()
    total = brought.new_zeros(latents, brought.shape[1])
    return _shares(total.index_add(0, places.latent, brought))


def _shares(parts: Float[Tensor, "latents heads"]) -> Shares:
    return parts / parts.sum(1, keepdim=True).clamp_min(1e-30)


def top_latents(
    shares: Shares, count: int = 10, *, among: Bool[Tensor, " latents"] | None = None
) -> Int[Tensor, "heads count"]:
    """The latents in which each head has the largest share, largest first.

    Raises:
        UserError: fewer latents to choose among.
    """
    there = torch.ones(len(shares), dtype=torch.bool) if among is None else among
    if int(there.sum()) < count:
        raise UserError(f"{int(there.sum())} latents are too few for the {count} of each head")
    ranked = shares.masked_fill(~there[:, None], -1.0)
    return ranked.topk(count, dim=0).indices.T


class Agreement(NamedTuple):
    """How far two ways of giving latents to heads agree."""

    same_head: float
    """Share of latents of which the same head has most."""
    overlap: float
    """Mean of sum_k min(a_k, b_k): 1 where the shares are the same."""
    same_latents: float
    """Mean over heads of the share of their top latents that both name."""
    same_head_exchanged: float
    """`same_head` when latents are exchanged at random: chance."""
    overlap_exchanged: float
    """`overlap` then."""
    same_latents_exchanged: float
    """`same_latents` then."""


def agreement(
    one: Shares,
    other: Shares,
    *,
    among: Bool[Tensor, " latents"] | None = None,
    count: int = 10,
    seed: int = 0,
) -> Agreement:
    """Compare two ways over some latents; those that a way knows nothing of are left out."""
    known = (one.sum(1) > 0) & (other.sum(1) > 0)
    chosen = (known if among is None else known & among).nonzero()[:, 0]
    a, b = one[chosen], other[chosen]
    mixed = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    return Agreement(*_compared(a, b, count), *_compared(a, b[mixed], count))


def _compared(a: Shares, b: Shares, count: int) -> tuple[float, float, float]:
    tops = [top_latents(each, min(count, len(each))) for each in (a, b)]
    shared = [
        len(set(mine.tolist()) & set(theirs.tolist())) / len(mine)
        for mine, theirs in zip(*tops, strict=True)
    ]
    return (
        (a.argmax(1) == b.argmax(1)).double().mean().item(),
        torch.minimum(a, b).sum(1).double().mean().item(),
        sum(shared) / len(shared),
    )
