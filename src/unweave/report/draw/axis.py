"""Scales and their ticks."""

import math
from dataclasses import dataclass

from unweave.report.html import Markup, element

Coordinate = float | int
"""A place or a number on an axis."""


def at(value: Coordinate) -> str:
    """A coordinate with one decimal, short."""
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Scale:
    """Maps numbers of [low, high] to coordinates of [start, end], straight or by logarithm."""

    low: Coordinate
    high: Coordinate
    start: Coordinate
    end: Coordinate
    log: bool = False

    def __call__(self, value: Coordinate) -> float:
        """The coordinate of `value`, kept inside the axis."""
        low, high, value = (self._turn(x) for x in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _turn(self, value: Coordinate) -> float:
        return math.log10(max(value, 1e-30)) if self.log else float(value)

    def ticks(self, about: int = 4) -> list[float]:
        """Round numbers inside the axis."""
        powers = self._powers() if self.log else []
        return powers if len(powers) > 2 else self._steps(about)

    def _steps(self, about: int) -> list[float]:
        raw = (self.high - self.low) / max(about, 1)
        if not raw > 0 or not math.isfinite(raw):
            return [float(self.low)]
        base = 10.0 ** math.floor(math.log10(raw))
        step = next(base * factor for factor in (1, 2, 5, 10) if base * factor >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _powers(self) -> list[float]:
        first, last = (math.log10(max(x, 1e-30)) for x in (self.low, self.high))
        factors = (1,) if last - first > 2.5 else (1, 2, 5)
        powers = range(math.floor(first), math.ceil(last) + 1)
        every = [factor * 10.0**power for power in powers for factor in factors]
        return [x for x in every if self.low * 0.999 <= x <= self.high * 1.001]


def label(number: Coordinate) -> str:
    """A tick's number without needless digits."""
    if number and (abs(number) >= 1e6 or abs(number) < 1e-3):
        return f"{number:.0e}".replace("e+0", "e").replace("e-0", "e−").replace("e-", "e−")
    return f"{number:,.3f}".rstrip("0").rstrip(".").replace("-", "−") or "0"


def rows(scale: Scale, left: Coordinate, right: Coordinate, about: int = 4) -> list[Markup]:
    """Horizontal hairlines with numbers to their left, for a vertical scale."""
    drawn = []
    for tick in scale.ticks(about):
        y = scale(tick)
        drawn.append(element("line", x1=at(left), x2=at(right), y1=at(y), y2=at(y), class_="grid"))
        drawn.append(element("text", label(tick), x=at(left - 6), y=at(y + 3.5), class_="tick end"))
    return drawn
