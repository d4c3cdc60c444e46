"""The place that rivals compete at: what is read there, what is to be written, and vectors of both.

Where a site is written from itself, a rival reads and writes the same vectors. Where a block is to
be replaced, every rival but the neurons may use the block's own true output: it takes that apart,
which no transcoder gets to see, so that what it loses is lost by its code alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.baselines.neurons import Block, exact_block
from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.part_names import KINDS, input_site, output_site
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.sites import canonical


class Spot(NamedTuple):
    """One place and vectors to fit on."""

    subject: Subject
    """The network."""
    reads: tuple[str, ...]
    """Sites read."""
    writes: tuple[str, ...]
    """Sites written."""
    y: Float[Tensor, "vectors d_out"]
    """What is there to be written, in the untouched network."""
    block: Block | None
    """What makes it of what is read; None where the same is read and written."""

    @property
    def layer(self) -> int | None:
        """The block that the last site written belongs to."""
        name = canonical(self.writes[-1])
        return int(name.split(".")[1]) if name.startswith("blocks.") else None


class Behind:
    """A coder of a block's output, read at the block's input: it takes apart what is true."""

    def __init__(self, coder: Coder, block: Callable[[Tensor], Tensor]) -> None:
        self._coder, self._block = coder, block

    @property
    def n_latents(self) -> int:
        """Those of the coder."""
        return self._coder.n_latents

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """The code of what the block makes of the vectors."""
        return self._coder.encode(self._block(x))

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What the coder makes of the code."""
        return self._coder.decode(code)

    def directions(self) -> Float[Tensor, "latents d_out"]:
        """Those of the coder."""
        return self._coder.directions()


@torch.no_grad()
def spot(
    subject: Subject,
    reads: Sequence[str],
    writes: Sequence[str],
    rows: Int[Tensor, "rows pos"],
    *,
    rows_at_once: int = 8,
) -> Spot:
    """The place with the vectors that are to be written there over all rows, position 0 left out.

    Raises:
        UserError: a pair of sites that no block of the network lies between.
    """
    block = None if tuple(reads) == tuple(writes) else block_between(subject, reads, writes)
    found = []
    for group in rows.split(rows_at_once):
        sites = subject.run(group, capture=list(writes), logits=False).sites
        found.append(torch.cat([sites[s][:, 1:].flatten(2).flatten(0, 1) for s in writes], 1))
    return Spot(subject, tuple(reads), tuple(writes), torch.cat(found).float(), block)


def block_between(subject: Subject, reads: Sequence[str], writes: Sequence[str]) -> Block:
    """The network's own map from a site read to one written.

    Raises:
        UserError: they are not the two ends of what a part of some block stands in for.
    """
    ends = tuple(canonical(site) for site in (*reads, *writes))
    for layer in range(subject.n_layers):
        for part in (f"L{layer}.{kind}" for kind in KINDS):
            if ends == (input_site(part), output_site(part)):
                return exact_block(subject, part)
    raise UserError(
        f"From {', '.join(reads)} to {', '.join(writes)} no one block leads, so that no baseline "
        "can stand there: give --baselines none, or a site, an MLP, an attention output, or "
        "queries or keys"
    )
