"""A compiled program for methods that score edges by pairs of prompts (`unweave.circuits`).

Their graph has one source for what is put on the stream first, tokens and places together; and a
pair differs in its words alone, so an edge that carries nothing but places cannot be seen by it.
"""

import torch

from unweave.circuits.contrasts import Contrast
from unweave.errors import UserError
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.layout import EMBED, POSITIONS, Edge

TRIES = 100
"""Draws for each wanted pair before it is given up."""


def program_contrasts(compiled: Compiled, count: int, *, length: int, seed: int) -> list[Contrast]:
    """Pairs of random rows whose answers at the last place differ.

    Raises:
        UserError: hardly any two rows of this length have different answers.
    """
    program = compiled.program
    rows = program.draw(2 * count * TRIES, length=length, seed=seed)
    found: list[Contrast] = []
    for clean, corrupt in rows.view(-1, 2, rows.shape[1]):
        right, wrong = program.answers(torch.stack([clean, corrupt]))[:, -1].tolist()
        if right != wrong:
            pair = tuple(clean.tolist()), tuple(corrupt.tolist())
            found.append(Contrast(*pair, (right,), (wrong,)))
        if len(found) == count:
            return found
    raise UserError(
        f"{program.name} gives the same answer at the end of nearly all rows of {length} words, so "
        "they make no pairs; take another length"
    )


def one_embedding(edges: frozenset[Edge]) -> frozenset[Edge]:
    """True edges of the graph in which tokens and places are one source."""
    return frozenset(e._replace(source=EMBED) if e.source == POSITIONS else e for e in edges)
