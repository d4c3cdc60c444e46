"""Latents upstream of a place under attribution, and how its shares fall to them.

A dictionary that writes a site on the way (an MLP's output, an earlier block's heads, the stream)
says of that site's vector that it is x = sum_j a_j d_j + rest. What arrives from x is divided the
same way; the rest holds the dictionary's error and whatever it adds besides latents.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.circuits.latents import row_scale
from unweave.dictionaries.code import Coder
from unweave.subject.sites import canonical


class Upstream(NamedTuple):
    """A coder upstream."""

    name: str
    """What its shares are called."""
    coder: Coder
    """Whose latents share what arrives."""
    reads: str
    """Site that it reads."""
    writes: str
    """Site that it writes; the same for an autoencoder."""


class Share(NamedTuple):
    """What arrives from one site, by latents active there."""

    position: Int[Tensor, " active"]
    """Where each was active."""
    latent: Int[Tensor, " active"]
    """Which it was."""
    contribution: Float[Tensor, "places active"]
    """What it brings."""
    rest: Float[Tensor, "places pos"]
    """What arrives from the site and from none of its latents; all of it at position 0."""

    @property
    def total(self) -> Float[Tensor, " places"]:
        """What arrives from the site."""
        return self.contribution.sum(1) + self.rest.sum(1)


def read_upstream(upstream: Sequence[Upstream], known: Mapping[str, Tensor]) -> dict[str, list]:
    """The coders by the canonical name of the site that they write."""
    found: dict[str, list[Upstream]] = {}
    for one in upstream:
        assert {one.reads, one.writes} <= known.keys()
        found.setdefault(canonical(one.writes), []).append(one)
    return found


def shared_out(
    one: Upstream,
    known: Mapping[str, Float[Tensor, "pos d"]],
    slope: Float[Tensor, "places pos d"],
) -> Share:
    """What arrives from the site that a coder writes, given the slope there."""
    read, whole = known[one.reads][1:], (slope * known[one.writes]).sum(2)
    code = one.coder.encode(read)
    row, latent = code.support.row, code.support.latent
    value = code.value.float() * row_scale(one.coder, read)[row, 0]
    # One position after another: no latent's direction is ever copied once for every place.
    along = torch.einsum("pad,ad->pa", slope[:, row + 1], one.coder.directions().float()[latent])
    contribution = along * value
    rest = whole.index_add(1, row + 1, -contribution)
    return Share(row + 1, latent, contribution, rest)
