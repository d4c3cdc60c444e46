"""The interaction graph of a network of edges: what each feature reads, and who reads it.

An edge between features that never meet is interference, so edges are ranked by what they deliver
where their reader is active, sign kept:

    used(w, t) = V[w, t] * E[a_w / s | t active]     into attention latents along the pattern
    used(w, v) = V[w, v] * E[p_v a_w / s] / E[p_v]   into logits, where the logit is likely

Rows are tokens, latents and constants alike, columns latents and logits: the kinds token ->
feature, feature -> feature through MLPs, values, queries and keys, and feature -> logit. Query and
key features meet in products; `score_pairs` ranks those.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.decompile.explicit.virtual import LOGITS
from unweave.decompile.sparse.edges import EdgeNetwork
from unweave.decompile.sparse.machine import Trace
from unweave.decompile.sparse.spec import part_of
from unweave.decompile.sparse.uses import carried, meetings


class Interaction(NamedTuple):
    """An edge and what it delivers."""

    source_part: str
    """`token`, or a part that writes the stream."""
    source: int
    """Token or latent; a part's constants are numbered behind its latents."""
    target_part: str
    """A part, or `logit`."""
    target: int
    """Latent or logit."""
    weight: float
    """The edge."""
    used: float
    """What it adds on the mean where its target is active."""


class ScorePair(NamedTuple):
    """A query feature and a key feature, and what they add to a head's score."""

    head: int
    query: int
    key: int
    weight: float
    """What one unit of each adds to the score at this distance."""


@torch.no_grad()
def delivered(
    network: EdgeNetwork, rows: Int[Tensor, "rows pos"]
) -> dict[str, Float[Tensor, "writers readers"]]:
    """`used` of every edge, a table for each part and the logits."""
    sums: dict[str, Tensor] = {}
    active: dict[str, Tensor] = {}
    for group in rows.split(8):
        found = network.trace(group)
        for name in network.tables:
            pre = found.pre[name]
            on = pre.softmax(1) if name == LOGITS else _active(found, name)
            met = meetings(network, found, name, carried(network, found, name, on), power=1)
            sums[name] = sums[name].add_(met) if name in sums else met
            active[name] = active.get(name, torch.zeros(pre.shape[1])) + on.mean(0)
    return {
        name: network.tables[name].detach() * met / active[name].clamp_min(1e-12)
        for name, met in sums.items()
    }


def strongest_into(
    network: EdgeNetwork, used: Mapping[str, Tensor], part: str, target: int, count: int = 8
) -> list[Interaction]:
    """The edges that deliver most to a latent or a logit, excited or kept down."""
    column = used[part][:, target]
    top = column.abs().topk(min(count, int((column != 0).sum()))).indices.tolist()
    return [_interaction(network, used, writer, part, target) for writer in top]


def strongest_from(
    network: EdgeNetwork, used: Mapping[str, Tensor], part: str, source: int, count: int = 8
) -> list[Interaction]:
    """The edges out of a token or a latent that deliver most, whichever part reads them."""
    writer = network.spec.writers[part][0] + source
    found = []
    for name, table in used.items():
        if writer >= len(table):
            continue
        top = table[writer].abs().topk(min(count, int((table[writer] != 0).sum()))).indices
        found += [_interaction(network, used, writer, name, to) for to in top.tolist()]
    return sorted(found, key=lambda each: -abs(each.used))[:count]


def score_pairs(network: EdgeNetwork, layer: int, distance: int, count: int = 8) -> list[ScorePair]:
    """The pairs that add or take most at a distance, by weight alone; constants behind latents."""
    spec = network.spec
    queries, keys = (
        torch.view_as_complex(t.detach().contiguous())
        for t in (network.queries[f"L{layer}.q"], network.keys[f"L{layer}.k"])
    )
    turn = torch.polar(torch.ones_like(network.theta), distance * network.theta)
    group = spec.heads // spec.kv_heads
    weight = torch.stack(
        [
            ((queries[:, head] * turn) @ keys[:, head // group].conj().T).real
            for head in range(spec.heads)
        ]
    )
    weight = weight * spec.score_scale
    top = weight.abs().flatten().topk(count).indices
    places = torch.stack(torch.unravel_index(top, weight.shape), 1).tolist()
    return [ScorePair(h, a, b, float(weight[h, a, b])) for h, a, b in places]


def _active(found: Trace, name: str) -> Float[Tensor, "rows latents"]:
    return (found.strength[part_of(name)] != 0).float()


def _interaction(
    network: EdgeNetwork, used: Mapping[str, Tensor], writer: int, part: str, target: int
) -> Interaction:
    source_part, source = next(
        (name, writer - first)
        for name, (first, end) in network.spec.writers.items()
        if first <= writer < end
    )
    weight = float(network.tables[part][writer, target])
    amount = float(used[part][writer, target])
    return Interaction(source_part, source, part, target, weight, amount)
