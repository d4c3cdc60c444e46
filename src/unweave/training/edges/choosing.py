"""Masks of a given size: by score, and two that scores must beat."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Tables = Mapping[str, Float[Tensor, "_ _"]]
"""Scores of edges, by the part that reads them; never negative."""
Masks = dict[str, Bool[Tensor, "_ _"]]
"""True where an edge is kept."""


def keep_highest(scores: Tables, count: int) -> Masks:
    """The `count` edges with the highest scores of all tables together.

    Edges without a score, those that do nothing, are never kept.
    """
    total = sum(table.numel() for table in scores.values())
    everything = torch.cat([table.reshape(-1) for table in scores.values()])
    if count <= 0:
        return {name: torch.zeros_like(table, dtype=torch.bool) for name, table in scores.items()}
    least = everything.kthvalue(total - min(count, total) + 1).values
    masks = {name: (table > least) for name, table in scores.items()}
    # Of those that tie with the last one as many as there is room for, in the order of tables.
    room = count - sum(int(mask.sum()) for mask in masks.values())
    for name, table in scores.items():
        if least <= 0 or room <= 0:
            break
        tied = (table == least).reshape(-1).nonzero()[:room, 0]
        masks[name].view(-1)[tied] = True
        room -= len(tied)
    return masks


def keep_random(masks: Mapping[str, Bool[Tensor, "_ _"]], seed: int) -> Masks:
    """As many edges of each table as the masks keep, drawn blindly: the control of a mask."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, mask in masks.items():
        drawn = torch.rand(mask.numel(), generator=generator)
        found[name] = keep_highest({name: drawn[None]}, int(mask.sum()))[name].view(mask.shape)
    return found


def keep_shuffled(masks: Mapping[str, Bool[Tensor, "_ _"]], seed: int) -> Masks:
    """Each reader keeps as many edges as it did, from writers drawn among those of its table.

    Writers are renumbered at random once for each table, so that popular writers stay popular and
    only who they are is lost: the control of which writer a reader reads.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask[torch.randperm(len(mask), generator=generator)] for name, mask in masks.items()
    }
