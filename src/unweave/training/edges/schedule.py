"""How many edges are left at each step: quickly fewer at first, then slowly."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class PruningSchedule(BaseModel):
    """From one share of edges to a smaller one along a cubic (Zhu & Gupta 2017), then level.

    share(t) = final + (start - final) (1 - t)^3      t: how far through the pruning steps
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    start: float = Field(default=1.0, gt=0, le=1)
    """Share of edges before the first cut."""
    final: float = Field(default=0.1, gt=0, le=1)
    """Share at the end."""
    until: float = Field(default=0.6, gt=0, le=1)
    """Share of the steps after which nothing is cut any more."""
    every: PositiveInt = 10
    """Steps from one cut to the next."""

    def share(self, step: int, steps: int) -> float:
        """Share of edges kept from this step on.

        >>> PruningSchedule(final=0.2, until=0.5).share(50, 100)
        0.2
        """
        done = min(1.0, step / max(1.0, self.until * steps))
        return self.final + (self.start - self.final) * (1 - done) ** 3

    def cuts(self, step: int, steps: int) -> bool:
        """Whether edges are cut before this step."""
        last = -(-int(self.until * steps) // self.every) * self.every
        return step > 0 and step % self.every == 0 and step <= last
