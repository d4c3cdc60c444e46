"""Recursive attribution: from an attention-output latent back to what was written upstream.

With all patterns and norm scales taken as they are in the pass, the pre-activation of a latent is
linear in the residual stream of earlier layers (Kissane et al. 2024, 2406.17759). The walk starts
at the latent's own block and goes down: at each earlier block it notes what every MLP and every
head wrote that arrives, and follows the heads that are asked for through their pattern and values
to their own sources. What is noted adds up to the pre-activation exactly. MLPs end the walk.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.circuits.attention.frozen import FrozenBlock, frozen_blocks
from unweave.circuits.attention.reading import Reader, linear_reads, read_scale, z_layer
from unweave.circuits.attention.upstream import Share, Upstream, read_upstream, shared_out
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.sites import canonical

FIRST = "blocks.0.resid_pre"
"""Token embeddings, with positions where these are added to them."""


class RecursiveAttribution(NamedTuple):
    """What arrives in each place's pre-activation, by who wrote it and where."""

    embed: Float[Tensor, "places pos"]
    """What the embeddings wrote at each position."""
    mlps: Float[Tensor, "places layers pos"]
    """What each earlier MLP wrote."""
    heads: Float[Tensor, "places layers heads pos"]
    """What each earlier head wrote; of followed ones it is what goes through them."""
    constant: Float[Tensor, " places"]
    """What biases of values, of norms and of outputs bring."""
    offset: Float[Tensor, " places"]
    """What the latent has whatever comes in."""
    followed: Bool[Tensor, "layers heads"]
    """Heads whose share is found again in what they read."""
    upstream: dict[str, Share]
    """The shares of upstream latents, by the name of their dictionary: a part of the above."""

    @property
    def total(self) -> Float[Tensor, " places"]:
        """The pre-activations: everything but what followed heads only pass on."""
        ends = (self.heads * ~self.followed[None, :, :, None]).sum((1, 2, 3))
        whole = self.embed.sum(1) + self.mlps.sum((1, 2)) + ends
        return whole + self.constant + self.offset


@torch.no_grad()
def recursive_attribution(
    subject: Subject,
    site: str,
    reader: Reader,
    tokens: Int[Tensor, " pos"],
    position: Int[Tensor, " places"],
    latent: Int[Tensor, " places"],
    *,
    follow: Bool[Tensor, "layers heads"] | None = None,
    upstream: Sequence[Upstream] = (),
) -> RecursiveAttribution:
    """Attribute latents that read `site` (blocks.N.attn.z) at positions of one row.

    `follow` says which heads of earlier blocks are gone through to what they read: none if it is
    not given, so that the answer names the components right upstream; all with a mask of ones.

    Raises:
        UserError: another site, a subject that is not in float32, an encoder that is not linear,
            dictionaries that write none of the places on the way.
    """
    layer, heads = z_layer(subject, site), subject.n_heads
    if follow is None:
        follow = torch.zeros(layer, heads, dtype=torch.bool)
    if tuple(follow.shape) != (layer, heads):
        raise UserError(
            f"{site} has {layer} layers of {heads} heads upstream, and `follow` is"
            f" {list(follow.shape)}"
        )
    _check(subject, layer, upstream)
    sites = list(dict.fromkeys((FIRST, *(s for one in upstream for s in (one.reads, one.writes)))))
    blocks, found = frozen_blocks(subject, tokens[None], layer + 1, sites)
    known = {name: tensor[0].flatten(1).float() for name, tensor in found.items()}
    walk = _Walk(blocks, follow, read_upstream(upstream, known), known)
    reads = linear_reads(reader)
    scale = read_scale(reader, blocks[layer].z.flatten(1)[position])
    own = reads.by_head(heads)[latent] / scale[:, None, None]
    at = torch.zeros(len(position), tokens.shape[0], heads, own.shape[2]).to(own)
    at[torch.arange(len(position)), position] = own
    return walk.down(layer, at, reads.offset[latent])


def _check(subject: Subject, layer: int, upstream: Sequence[Upstream]) -> None:
    parts = ("mlp.out", "attn.z", "resid_post")
    allowed = {f"blocks.{i}.{part}" for i in range(layer) for part in parts} | {FIRST}
    for one in upstream:
        if canonical(one.writes) not in allowed:
            raise UserError(
                f"{one.name} writes {one.writes}, which is not on the way to block {layer}: the way"
                " goes through mlp.out, attn.z and resid_post of earlier blocks"
            )


class _Walk:
    """One way down, with a gradient for every place and position."""

    def __init__(
        self,
        blocks: Sequence[FrozenBlock],
        follow: Bool[Tensor, "layers heads"],
        upstream: Mapping[str, list[Upstream]],
        known: Mapping[str, Tensor],
    ) -> None:
        self.blocks, self.follow, self.upstream, self.known = blocks, follow, upstream, known
        self.shares: dict[str, Share] = {}

    def down(self, layer: int, slope: Tensor, offset: Tensor) -> RecursiveAttribution:
        """From the slope on the heads' outputs [places, pos, heads, d_head] to the embeddings."""
        places, width, heads, _ = slope.shape
        mlps = slope.new_zeros(places, layer, width)
        through = slope.new_zeros(places, layer, heads, width)
        stream, constant = self.blocks[layer].to_stream(slope)
        for lower in reversed(range(layer)):
            block = self.blocks[lower]
            self._note(f"blocks.{lower}.resid_post", stream)
            written = stream * block.mlp_gain
            self._note(f"blocks.{lower}.mlp.out", written)
            mlps[:, lower] = (written * block.mlp_out).sum(2)
            attended = stream * block.attn_gain
            constant = constant + (attended @ block.b_O).sum(1)
            slope = block.to_heads(attended)
            self._note(f"blocks.{lower}.attn.z", slope.flatten(2))
            through[:, lower] = (slope * block.z).sum(3).transpose(1, 2)
            if self.follow[lower].any():
                kept = slope * self.follow[lower].to(slope)[:, None]
                more, bias = block.to_stream(kept)
                stream, constant = stream + more, constant + bias
        self._note(FIRST, stream)
        embed = (stream * self.known[FIRST]).sum(2)
        return RecursiveAttribution(
            embed, mlps, through, constant, offset, self.follow, self.shares
        )

    def _note(self, site: str, slope: Float[Tensor, "places pos d"]) -> None:
        for one in self.upstream.get(site, []):
            self.shares[one.name] = shared_out(one, self.known, slope)
