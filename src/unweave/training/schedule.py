"""How the learning rate moves over a run."""

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """Up over a warm-up, level, then down to a rest at the end; all in shares of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shape: Literal["linear", "cosine", "constant"] = "linear"
    """How it comes down."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share over which it rises from zero."""
    decay_from: float = Field(default=0.8, ge=0, lt=1)
    """Share at which it starts to come down."""
    rest: float = Field(default=0.0, ge=0, le=1)
    """What is left of the peak at the end."""

    def at(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate at a step."""
        done = step / max(steps, 1)
        up = min(1.0, (step + 1) / max(1.0, self.warmup * steps))
        if self.shape == "constant" or done <= self.decay_from:
            return up
        gone = min(1.0, (done - self.decay_from) / (1 - self.decay_from))
        left = 1 - gone if self.shape == "linear" else (1 + math.cos(math.pi * gone)) / 2
        return min(up, self.rest + (1 - self.rest) * left)


def linear_decay(step: int, steps: int, *, warmup: float = 0.05, decay_from: float = 0.5) -> float:
    """Multiplier at a step: up linearly over `warmup`, one, then down linearly to zero at the end.

    `warmup` and `decay_from` are shares of the run.
    """
    return Schedule(warmup=warmup, decay_from=decay_from).at(step, steps)
