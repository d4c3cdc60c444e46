"""What kind of source a latent reads from, by where its attribution comes from.

Every source position s of a position t is of one kind, the first that applies: the start token; t
itself; the one before; an earlier copy of the token at t; what followed such a copy (induction);
up to `NEAR` back; further back. A latent's shares are those of what arrives from each kind at its
strongest firings, beside the shares of positions of that kind there, which is what arrives when a
latent reads everywhere alike. Families as in Kissane et al. 2024 (2406.17759): induction, short
range, long range; ours: copies and the start token are told apart from both.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.circuits.attention.direct import DirectAttribution
from unweave.circuits.attention.reading import Places

KINDS = ("start", "current", "previous", "duplicate", "induction", "near", "far")
"""Kinds of source position, in the order in which they are asked for."""
NEAR = 8
"""Sources up to so many positions back are near."""

Family = Literal["start", "short range", "duplicate", "induction", "long range"]
FAMILIES: tuple[Family, ...] = ("start", "short range", "duplicate", "induction", "long range")
"""Families of latents, in the order of their numbers."""
_FAMILY_OF = torch.tensor([0, 1, 1, 2, 3, 1, 4])


class SourceShares(NamedTuple):
    """Where what latents read comes from."""

    shares: Float[Tensor, "latents kinds"]
    """Share of each kind in all that arrives and is positive; zeros where nothing was seen."""
    chance: Float[Tensor, "latents kinds"]
    """Share of positions of that kind at the same places."""
    distance: Float[Tensor, " latents"]
    """Mean number of positions back, the start token left out."""
    places: Int[Tensor, " latents"]
    """At how many places each was looked at."""

    @property
    def seen(self) -> Bool[Tensor, " latents"]:
        """Latents that something is known of."""
        return self.shares.sum(1) > 0


def source_kinds(tokens: Int[Tensor, "rows pos"]) -> Int[Tensor, "rows query key"]:
    """The kind of every source for every position; -1 where it is still to come."""
    width = tokens.shape[1]
    back = torch.arange(width)[:, None] - torch.arange(width)
    before = tokens.roll(1, 1)
    before[:, 0] = -1
    found = torch.where(back <= NEAR, KINDS.index("near"), KINDS.index("far"))
    found = found.expand(len(tokens), -1, -1).clone()
    found[before[:, None, :] == tokens[:, :, None]] = KINDS.index("induction")
    found[tokens[:, None, :] == tokens[:, :, None]] = KINDS.index("duplicate")
    found[:, back == 1] = KINDS.index("previous")
    found[:, back == 0] = KINDS.index("current")
    found[:, :, 0] = KINDS.index("start")
    found[:, back < 0] = -1
    return found


def source_shares(
    found: DirectAttribution, places: Places, tokens: Int[Tensor, "rows pos"], latents: int
) -> SourceShares:
    """Shares of every latent over its places; positive contributions alone count."""
    brought = found.by_source.clamp_min(0)
    kinds = torch.stack([source_kinds(tokens[row : row + 1])[0] for row in range(len(tokens))])[
        places.row, places.position
    ]
    there = kinds >= 0
    sums, counts = (brought.new_zeros(latents, len(KINDS)) for _ in range(2))
    which = places.latent[:, None].expand_as(kinds)
    sums.index_put_((which[there], kinds[there]), brought[there], accumulate=True)
    counts.index_put_(
        (which[there], kinds[there]), torch.ones_like(brought[there]), accumulate=True
    )
    back = (places.position[:, None] - torch.arange(tokens.shape[1])).to(brought)
    beyond = brought * (kinds > 0)
    far, all_of_it = (
        brought.new_zeros(latents).index_add(0, places.latent, part.sum(1))
        for part in (beyond * back, beyond)
    )
    return SourceShares(
        shares=_shared(sums),
        chance=_shared(counts),
        distance=far / all_of_it.clamp_min(1e-30),
        places=torch.bincount(places.latent, minlength=latents),
    )


def families(found: SourceShares) -> Int[Tensor, " latents"]:
    """The family from which most arrives, as an index into `FAMILIES`; -1 for unseen latents."""
    grouped = found.shares.new_zeros(len(found.shares), len(FAMILIES))
    grouped.index_add_(1, _FAMILY_OF, found.shares)
    return grouped.argmax(1).masked_fill(~found.seen, -1)


def _shared(sums: Tensor) -> Tensor:
    return sums / sums.sum(1, keepdim=True).clamp_min(1e-30)
