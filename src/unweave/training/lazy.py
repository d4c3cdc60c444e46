"""Updates of those rows alone that have a gradient.

Adam moves every row of a matrix in every step, those of silent latents along what is left of their
last gradients. A lazy row waits: it is neither read nor written until its latent fires again. What
it missed is then made up for: its moments fade by all those steps, which leaves them exactly as
Adam's, and the row goes the way on which they would have carried it, at today's rate. What differs
from Adam is that latents are chosen, and gradients taken, by rows that lack that way.

The way matters. With betas (.9, .999) a gradient on its own moves a row by three rates in its own
step and by ten times that in the steps after it: without them rare latents hardly learn.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unweave.dictionaries.kernels.native import calls as native

_MISSED = {"stay": 0, "fade": 1, "made_up": 2}


class Lazy(BaseModel):
    """How rows wait. Only the compiled kernels let rows wait; elsewhere all move in each step, and
    so they do where several processes put their gradients together."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    missed: Literal["made_up", "fade", "stay"] = "made_up"
    """What becomes of the steps that a row missed: made up for; its moments alone fade by them; or
    nothing, as in `SparseAdam`. The last two are there to be compared with."""


def listed(
    state: dict[str, Tensor], weight: Tensor, which: Tensor | None, lazy: Lazy | None
) -> native.Listed | None:
    """What the kernel needs to let rows wait; None where all rows are moved in every step.

    `state` is Adam's of this matrix and keeps under `seen` when each row was last moved.
    """
    if lazy is None:
        return None
    if "seen" not in state:
        before = int(state["step"]) - 1
        state["seen"] = torch.full((len(weight),), before, dtype=torch.int32)
    return native.Listed(which, state["seen"], int(state["step"]), _MISSED[lazy.missed])
