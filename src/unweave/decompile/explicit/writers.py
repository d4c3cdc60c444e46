"""Everything that writes to the residual stream, in one numbering.

Tokens write their embeddings; a part's latents write their decoder rows. Two constants stand behind
each part's latents: its offset `b_dec`, which is on everywhere but at a start token, and what it
writes at a start token, where nothing else of it is on. So the stream of a decompiled network is,
everywhere and exactly, a sum of writers times strengths.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.decompile.edges import written_by
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.subject import Subject

TOKENS = "token"
"""The block of writers that the embedding makes."""
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
    for name in in_order(parts):
        if place_of(name).writes_stream:
            first[name] = count
            count += parts[name].spec.n_latents + CONSTANTS
    return Writers(first, count)


def written(
    subject: Subject, parts: Mapping[str, Part], writers: Writers
) -> Float[Tensor, "writers d_model"]:
    """What each writer adds to the stream per unit of strength; needed only to derive weights."""
    blocks = []
    for name in writers.first:
        if name == TOKENS:
            blocks.append(subject.embed().float())
            continue
        part = parts[name]
        latents = written_by(subject, part, torch.arange(part.spec.n_latents))
        place = place_of(name)
        gain = subject.write_gain(place.layer, place.norm).float()
        offset = part.b_dec.detach() * gain / part.spec.output_scale
        blocks += [latents, torch.stack([offset, part.start_output * gain])]
    return torch.cat(blocks)


def in_order(parts: Mapping[str, Part]) -> list[str]:
    """Names of parts in the order in which they are computed."""
    return sorted(parts, key=lambda name: place_of(name).order)
