"""Adam on a matrix whose gradient was put off: worked out block by block, twice.

Once for the norm, which bounds the whole gradient, and once for the step.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unweave.dictionaries.kernels.deferred import BLOCK, Entries, block_of
from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.rounding import to_keep


class Blocks(NamedTuple):
    """One matrix's gradient."""

    parameter: nn.Parameter
    entries: list[Entries]
    """What it is the sum of."""
    listed: Tensor | None
    """Rows that are added to it, a sparse tensor."""
    along: list[Tensor | None]
    """By block: how far each row points along the unit row of the weights."""
    square: float
    """Its squared norm, without what would only lengthen unit rows."""

    @classmethod
    def of(
        cls, parameter: nn.Parameter, entries: list[Entries], beside: Tensor | None, *, unit: bool
    ) -> "Blocks":
        """Measure the gradient; `beside` is what came to lie in `.grad` all the same."""
        if beside is not None:
            beside = (beside if beside.is_sparse else beside.to_sparse(1)).coalesce()
        along, square = [], 0.0
        weight = parameter.detach()
        for start in range(0, len(weight), BLOCK):
            rows = weight[start : start + BLOCK]
            gradient = block_of(entries, beside, start, start + len(rows))
            found = native.squares(rows, gradient, unit=unit)
            along.append(found.along)
            square += found.square
        return cls(parameter, entries, beside, along, square)

    @torch.no_grad()
    def step(self, state: Mapping[str, Tensor], step: native.Step) -> None:
        """Update the weights, their moments and their rounded copy in place."""
        weight, rounded = self.parameter.detach(), to_keep(self.parameter)
        for start, along in zip(range(0, len(weight), BLOCK), self.along, strict=True):
            mine = slice(start, start + BLOCK)
            rows = weight[mine]
            gradient = block_of(self.entries, self.listed, start, start + len(rows))
            moments = (state["exp_avg"][mine], state["exp_avg_sq"][mine])
            kept = None if rounded is None else rounded[mine]
            native.adam(rows, gradient, *moments, along, step, kept)
