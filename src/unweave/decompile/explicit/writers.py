"""Everything that writes to the residual stream, in one numbering.

Tokens write their embeddings, and so do positions where a subject has learned some; a part's
latents write their decoder rows. Two constants stand behind each part's latents: its offset
`b_dec`, which is on everywhere but at a start token, and what it writes at a start token, where
nothing else of it is on. So the stream of a decompiled network is, everywhere and exactly, a sum of
writers times strengths. Norms that centre see of each writer only what is left without its mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.subject import Subject

TOKENS = "token"
"""The block of writers that the embedding makes."""
POSITIONS = "position"
"""The block of writers that learned positions make, one for each place in a row."""
OFFSET, START, CONSTANTS = 0, 1, 2
"""Where a part's two constants stand behind its latents, and how many there are."""


@dataclass(frozen=True)
class Writers:
    """The numbering: a block of consecutive numbers for the tokens and for each part."""

    first: Mapping[str, int]
    """First number of each block, in the order of computation."""
    count: int
    """Writers in all."""

    def before(self, name: str) -> int:
        """How many writers come before a block: what a reader there can read."""
        return self.first[name]


def number_writers(subject: Subject, parts: Mapping[str, Part]) -> Writers:
    """Number the tokens and the latents of all parts that write to the stream."""
    first = {TOKENS: 0}
    count = subject.vocab_size
    if (positions := subject.positions()) is not None:
        first[POSITIONS] = count
        count += len(positions)
    for name in in_order(parts):
        if place_of(name).writes_stream:
            first[name] = count
            count += parts[name].spec.n_latents + CONSTANTS
    return Writers(first, count)


def written(
    subject: Subject, parts: Mapping[str, Part], writers: Writers
) -> Float[Tensor, "writers d_model"]:
    """What each writer adds to the stream per unit of strength; needed only to derive weights.

    Without its mean, where norms take that out: nothing reads it.
    """
    blocks, positions = [], subject.positions()
    for name in writers.first:
        if name == TOKENS:
            blocks.append(subject.embed().float())
        elif name == POSITIONS:
            assert positions is not None
            blocks.append(positions)
        else:
            place = place_of(name)
            gain = subject.write_gain(place.layer, place.norm).float()
            blocks.append(outputs(parts[name]) * gain)
    vectors = torch.cat(blocks)
    return vectors - vectors.mean(1, keepdim=True) if subject.norms_centre else vectors


def outputs(part: Part) -> Float[Tensor, "writers d_out"]:
    """What a part's latents and its two constants add to the site that it writes."""
    W_dec = torch.cat([part.W_dec.detach(), part.b_dec.detach()[None]]) / part.spec.output_scale
    return torch.cat([W_dec, part.start_output[None]])


def in_order(parts: Mapping[str, Part]) -> list[str]:
    """Names of parts in the order in which they are computed."""
    return sorted(parts, key=lambda name: place_of(name).order)
