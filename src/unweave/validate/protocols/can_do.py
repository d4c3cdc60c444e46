"""Whether a subject does a task at all: without that no circuit for it can be looked for.

Two shares of pairs, each held to a half by a sign test (exact binomial, one side): in how many
the right answer beats the wrong one after the clean prompt, and in how many it does so by more than
after the corrupted prompt. A network can have the first without reading what the task is about.
"""

from math import comb
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class CanDo(NamedTuple):
    """What a subject makes of some pairs."""

    pairs: int
    """How many."""
    accuracy: float
    """Share where the right answer beats the wrong one after the clean prompt."""
    told_apart: float
    """Share where it does so by more than after the corrupted prompt."""
    clean: float
    """Mean metric on clean prompts."""
    corrupt: float
    """Mean metric on corrupted prompts."""
    chance: float
    """How likely shares as large as the smaller of both are by chance."""

    def why_not(self, level: float) -> str | None:
        """A sentence on why the task is not done, or None where it is."""
        if self.pairs and self.chance < level:
            return None
        return (
            f"the right answer beats the wrong one in {self.accuracy:.0%} of {self.pairs} pairs,"
            f" and by more than after the corrupted prompt in {self.told_apart:.0%}: not clearly"
            f" above the half that chance gives (p = {self.chance:.2g})"
        )


def can_do(metrics: Float[Tensor, "2 pairs"]) -> CanDo:
    """From the metric on clean and on corrupted prompts (`plain_metrics`)."""
    clean, corrupt = metrics
    count = clean.shape[0]
    if not count:
        return CanDo(0, 0.0, 0.0, 0.0, 0.0, 1.0)
    right, more = int((clean > 0).sum()), int((clean > corrupt).sum())
    return CanDo(
        count, right / count, more / count, clean.mean().item(), corrupt.mean().item(),
        at_least(min(right, more), count),
    )  # fmt: skip


def at_least(hits: int, trials: int) -> float:
    """How likely so many hits or more are when each has one chance in two."""
    return sum(comb(trials, k) for k in range(hits, trials + 1)) / 2**trials
