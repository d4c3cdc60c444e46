"""Direct feature attribution of attention-output latents (Kissane et al. 2024, 2406.17759).

A dictionary on concatenated heads z = (z^1, ..., z^H) reads linearly, and each head's output is a
sum over source positions, z^h_t = sum_s A^h_ts v^h_s. So the pre-activation of latent i at t is

    pre_i = offset_i + sum_h sum_s A^h_ts  w_i^h . v^h_s

exactly: by head, by source, and by both. Heads that share a key and a value (grouped queries) have
one v between them. What is frozen is the pattern: it says where a head looked, not why.

Ours: a pattern's row sums to one, so what a head brings of its mean value is the same wherever it
looks. With `means` that much goes to the offset, and sources are told apart by what they have
beyond the mean; the sum stays exact.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.circuits.attention.reading import Places, Reader, linear_reads, read_scale, z_layer
from unweave.subject import Subject


class DirectAttribution(NamedTuple):
    """Pre-activations taken apart."""

    contributions: Float[Tensor, "places heads pos"]
    """What each head brings from each source position."""
    offset: Float[Tensor, " places"]
    """What a latent has wherever its heads look."""

    @property
    def by_head(self) -> Float[Tensor, "places heads"]:
        """Summed over sources."""
        return self.contributions.sum(2)

    @property
    def by_source(self) -> Float[Tensor, "places pos"]:
        """Summed over heads."""
        return self.contributions.sum(1)

    @property
    def total(self) -> Float[Tensor, " places"]:
        """The pre-activations."""
        return self.contributions.sum((1, 2)) + self.offset


class Moved(NamedTuple):
    """What the heads of one block move, and along which pattern."""

    pattern: Float[Tensor, "batch heads query key"]
    """From where to where."""
    values: Float[Tensor, "batch pos heads d_head"]
    """What there is to move, once for each query head."""
    z: Float[Tensor, "batch pos heads_d_head"]
    """What each head brought, concatenated."""


@torch.no_grad()
def moved(subject: Subject, layer: int, tokens: Int[Tensor, "batch pos"]) -> Moved:
    """Pattern, values and output of a block's heads in one pass."""
    names = [f"blocks.{layer}.attn.{what}" for what in ("pattern", "v", "z")]
    found = subject.run(tokens, capture=names, logits=False).sites
    pattern, values, z = (found[name].float() for name in names)
    return Moved(pattern, values.repeat_interleave(subject.n_heads // values.shape[2], 2), z)


@torch.no_grad()
def direct_attribution(
    subject: Subject,
    site: str,
    reader: Reader,
    tokens: Int[Tensor, "rows pos"],
    places: Places,
    *,
    means: Float[Tensor, "heads d_head"] | None = None,
    rows_at_once: int = 8,
) -> DirectAttribution:
    """Attribute latents that read `site` (blocks.N.attn.z) at some places of some rows.

    `means` are mean values of heads, as `mean_values` gives them; none are taken out without them.

    Raises:
        UserError: another site, a subject that is not in float32, an encoder that is not linear.
    """
    layer, heads = z_layer(subject, site), subject.n_heads
    reads = linear_reads(reader)
    directions = reads.by_head(heads)
    found = directions.new_zeros(len(places.row), heads, tokens.shape[1])
    offset = reads.offset[places.latent].clone()
    common = torch.zeros_like(directions[0]) if means is None else means
    for first in range(0, len(tokens), rows_at_once):
        group = tokens[first : first + rows_at_once]
        mine = ((places.row >= first) & (places.row < first + len(group))).nonzero()[:, 0]
        if not len(mine):
            continue
        seen = moved(subject, layer, group)
        for row in (places.row[mine] - first).unique().tolist():
            which = mine[places.row[mine] == first + row]
            at = places.position[which]
            scale = read_scale(reader, seen.z[row, at])
            own, values = directions[places.latent[which]], seen.values[row] - common
            worth = torch.einsum("phd,shd->phs", own, values)
            found[which] = worth * seen.pattern[row][:, at].transpose(0, 1) / scale[:, None, None]
            offset[which] += (own * common).sum((1, 2)) / scale
    return DirectAttribution(found, offset)


@torch.no_grad()
def mean_values(
    subject: Subject, site: str, tokens: Int[Tensor, "rows pos"], *, rows_at_once: int = 8
) -> Float[Tensor, "heads d_head"]:
    """Mean value of each head over all positions but the first, once for each query head."""
    name = f"blocks.{z_layer(subject, site)}.attn.v"
    total = sum(
        subject.run(group, capture=[name], logits=False).sites[name][:, 1:].double().sum((0, 1))
        for group in tokens.split(rows_at_once)
    )
    assert isinstance(total, Tensor)
    mean = (total / tokens[:, 1:].numel()).float()
    return mean.repeat_interleave(subject.n_heads // len(mean), 0)
