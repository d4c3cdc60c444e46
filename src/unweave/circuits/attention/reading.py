"""What latents read, as linear functions: the floor of every exact attribution.

The pre-activation of latent i on a raw vector x of its site is

    pre_i(x) = W[i] . x / scale(x) + offset[i]

where `scale` is 1, or the size of the row behind a dictionary's layer norm, which attribution
takes as given. Encoders that multiply what they read (gated linear units, products of small
latents, pursuit) have no such form.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.circuits.latents import row_scale
from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.sites import canonical

Reader = Coder | Part
"""Whose latents are attributed: a dictionary, or a part of a decompiled network."""


class Places(NamedTuple):
    """Latents at positions of rows."""

    row: Int[Tensor, " places"]
    """Which row."""
    position: Int[Tensor, " places"]
    """Which position of it; 0 has no latents."""
    latent: Int[Tensor, " places"]
    """Which latent."""


class LinearReads(NamedTuple):
    """Pre-activations of all latents as linear functions of what they read."""

    W: Float[Tensor, "latents d_in"]
    """What each latent reads of a raw vector, before the row's scale."""
    offset: Float[Tensor, " latents"]
    """What it has whatever comes in."""

    def by_head(self, heads: int) -> Float[Tensor, "latents heads d_head"]:
        """W cut into heads, where the site is concatenated heads."""
        return self.W.unflatten(1, (heads, -1))


@torch.no_grad()
def linear_reads(reader: Reader) -> LinearReads:
    """How a dictionary's or part's latents read.

    Raises:
        UserError: an encoder that is not linear, or a coder that has none.
    """
    if isinstance(reader, Part):
        return _part_reads(reader)
    if not isinstance(reader, Dictionary) or reader.spec.encoder.kind != "linear":
        name = getattr(getattr(reader, "spec", None), "name", type(reader).__name__)
        raise UserError(
            f"{name} does not encode linearly, so its latents cannot be attributed exactly: use a"
            " dictionary with a linear encoder"
        )
    spec, W_enc = reader.spec, reader.W_enc.detach()
    offset = reader.b_enc.detach()
    if spec.pre_bias:
        offset = offset - W_enc @ reader.b_dec.detach()
    if spec.layer_norm:  # a row's mean is taken out before anything is read
        W_enc = W_enc - W_enc.mean(1, keepdim=True)
    return LinearReads(W_enc * reader.input_scale, offset)


def _part_reads(part: Part) -> LinearReads:
    """A part whose latents read a slice each, with zeros for what they do not read."""
    spec = part.spec
    if spec.gated:
        raise UserError(
            f"{spec.name} has gated latents, products of two readings, so they cannot be attributed"
            " exactly: use a part without gates"
        )
    W = part.W_enc.detach().new_zeros(spec.n_latents, spec.heads, spec.d_read)
    head = torch.arange(spec.n_latents, device=W.device) * spec.heads // spec.n_latents
    W[torch.arange(spec.n_latents, device=W.device), head] = part.W_enc.detach()
    return LinearReads(W.flatten(1) * spec.input_scale, part.b_enc.detach())


def read_scale(reader: Reader, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, " rows"]:
    """What a row's reading is divided by: its size behind a layer norm, else 1."""
    return x.new_ones(len(x)) if isinstance(reader, Part) else row_scale(reader, x)[:, 0]


def z_layer(subject: Subject, site: str) -> int:
    """The block whose concatenated heads a site is.

    Raises:
        UserError: another site, or a subject too coarse for exact sums.
    """
    name = canonical(site)
    if not (name.startswith("blocks.") and name.endswith(".attn.z")):
        raise UserError(f"{site} is not the concatenated heads of a block: give blocks.N.attn.z")
    if subject.dtype != torch.float32:
        raise UserError(
            f"{subject.name} is in {subject.dtype}, too coarse for sums over heads and sources:"
            " load it with dtype='float32'"
        )
    subject.place(site)
    return int(name.split(".")[1])


@torch.no_grad()
def codes_at(
    subject: Subject,
    site: str,
    coder: Coder,
    tokens: Int[Tensor, "rows pos"],
    *,
    rows_at_once: int = 16,
) -> SparseCode:
    """Codes at every position but the first, rows after one another."""

    def pieces() -> Iterator[SparseCode]:
        for group in tokens.split(rows_at_once):
            x = subject.run(group, capture=[site], logits=False).sites[site]
            yield coder.encode(x[:, 1:].flatten(2).flatten(0, 1).float())

    return SparseCode.cat(list(pieces()))


def strongest_places(code: SparseCode, width: int, count: int) -> Places:
    """The `count` strongest firings of each latent, latents ascending, strongest first.

    `width` is the number of positions that a row has in the code: all but the first.
    """
    fired = (code.value > 0).nonzero()[:, 0]
    value, latent = code.value[fired], code.support.latent[fired]
    order = value.argsort(descending=True, stable=True)
    order = order[latent[order].argsort(stable=True)]
    latent = latent[order]
    first = torch.searchsorted(latent, latent)
    rank = torch.arange(len(latent), device=latent.device) - first
    kept = order[rank < count]
    place = code.support.row[fired[kept]]
    return Places(place // width, place % width + 1, code.support.latent[fired[kept]])
