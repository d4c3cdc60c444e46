"""Mean and standard deviation over seeds, of whatever numbers a run has."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from unweave.errors import UserError

ENOUGH = 5
"""Seeds from which on a spread is worth its name."""


class Spread(NamedTuple):
    """One number over several seeds."""

    mean: float
    """Mean."""
    std: float
    """Sample standard deviation; 0 for a single seed."""
    seeds: int
    """Seeds that had this number."""

    def __str__(self) -> str:
        few = "" if self.seeds >= ENOUGH else f" ({self.seeds} seeds)"
        return f"{self.mean:.3f} ± {self.std:.3f}{few}"


def over_seeds(runs: Sequence[Mapping[str, float | None]]) -> dict[str, Spread]:
    """Spread of every number over the runs that have it; numbers that no run has are left out.

    Raises:
        UserError: there are no runs.
    """
    if not runs:
        raise UserError(
            "There are no runs to take a mean of: give the numbers of at least one seed"
        )
    spreads = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [value for run in runs if (value := run.get(name)) is not None]
        if values:
            known = torch.tensor(values, dtype=torch.float64)
            std = known.std().item() if len(known) > 1 else 0.0
            spreads[name] = Spread(known.mean().item(), std, len(known))
    return spreads
