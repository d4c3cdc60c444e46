"""A squeezed program as any dictionary meets it: vectors of one site, and the variables in them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.validate.worlds.programs.compile import compile_program
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.compress import CompressSettings, compress
from unweave.validate.worlds.programs.library import program
from unweave.validate.worlds.world import Directions, World

ROWS, HELD_OUT_ROWS = 4096, 400
"""Sequences to learn from and to be judged on."""
LEARNT, JUDGED = 600_000_000, 700_000_000
"""Data seeds, added to the world's; apart from those that W is learned with."""


def program_world(
    name: str,
    *,
    share: float,
    seed: int,
    settings: CompressSettings | None = None,
    site: str = "final",
) -> World:
    """A program of the library in `share` times as many dimensions as it has directions.

    `settings` say how W is learned; their width is replaced. Features are directions of the
    variables, one for every value; those of one variable exclude each other.

    Raises:
        UserError: no program of that name.
    """
    original = compile_program(program(name))
    width = max(1, round(share * original.layout.size))
    settings = settings or CompressSettings(width=width)
    small = compress(original, settings.model_copy(update={"width": width}), seed=seed)
    longest = small.program.indices.length
    learnt = small.program.draw(ROWS, length=longest, seed=LEARNT + seed)
    judged = small.program.draw(HELD_OUT_ROWS, length=longest, seed=JUDGED + seed)
    directions, code = small.truth(judged, site)
    return World(
        name=f"program, {name}, {share:g}",
        train=site_vectors(small, learnt, site),
        held_out=site_vectors(small, judged, site),
        truth=Directions(directions, code),
        features=len(directions),
        k=code.l0(),
    )


@torch.no_grad()
def site_vectors(
    compiled: Compiled, rows: Int[Tensor, "rows pos"], site: str = "final"
) -> Float[Tensor, "places d_model"]:
    """What a site holds after the start of each row, row by row, as `Compiled.truth` has it."""
    found = compiled.subject.run(rows, capture=[site], logits=False).sites[site]
    return found[:, 1:].flatten(0, 1).clone()
