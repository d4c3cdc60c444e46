"""Accuracy against length: every method is one point, the lower left corner is where to be."""

from collections.abc import Sequence
from dataclasses import dataclass

from unweave.artifact.scores import Interval
from unweave.report.draw.axis import Scale, at, label, rows
from unweave.report.html import Markup, element
from unweave.report.numbers import short, signed

WIDTH, HEIGHT, LEFT, RIGHT, TOP, FLOOR = 480, 300, 52, 466, 16, 248


@dataclass(frozen=True)
class Point:
    """One method."""

    name: str
    length: Interval
    """Bits per token."""
    loss: Interval
    """What it costs in accuracy, nats."""
    ours: bool
    """Whether it is the artifact."""


def sketch(points: Sequence[Point], *, ceiling: tuple[str, float] | None, axis: str) -> Markup:
    """The points, with `ceiling` (name, nats) as a dashed line where it fits; y is named `axis`."""
    lengths = [point.length.value for point in points]
    high = max(point.loss.high or point.loss.value for point in points) * 1.15
    high = high if high > 0 else 1.0
    if ceiling and ceiling[1] <= 1.6 * high:
        high = max(high, ceiling[1] * 1.08)
    x = Scale(min(lengths) / 1.35, max(lengths) * 1.35, LEFT, RIGHT, log=True)
    y = Scale(min(0.0, *(point.loss.value for point in points)), high, FLOOR, TOP)
    return element(
        "svg",
        element("title", "Accuracy against length"),
        rows(y, LEFT, RIGHT),
        _columns(x),
        _ceiling(ceiling, y) if ceiling and ceiling[1] <= high else None,
        [_mark(point, x, y) for point in points],
        element("text", axis, x=LEFT, y=10, class_="name"),
        element("text", "bits per token (log scale)", x=RIGHT, y=HEIGHT - 20, class_="tick end"),
        viewBox=f"0 0 {WIDTH} {HEIGHT - 14}",
        role="img",
    )


def _columns(x: Scale) -> list[Markup]:
    return [
        element("text", label(tick), x=at(x(tick)), y=FLOOR + 15, class_="tick middle")
        for tick in x.ticks()
    ]


def _ceiling(ceiling: tuple[str, float], y: Scale) -> list[Markup]:
    level = at(y(ceiling[1]))
    return [
        element("line", x1=LEFT, x2=RIGHT, y1=level, y2=level, class_="chance"),
        element("text", ceiling[0], x=RIGHT, y=at(y(ceiling[1]) - 5), class_="tick end"),
    ]


def _mark(point: Point, x: Scale, y: Scale) -> Markup:
    across, down = x(point.length.value), y(point.loss.value)
    right = across < (LEFT + RIGHT) * 0.62
    said = f"{point.name}: {signed(point.loss.value)} nats, {short(point.length.value)} bits"
    low, high = point.loss.low, point.loss.high
    whisker = None
    if low is not None and high is not None:
        whisker = element(
            "line", x1=at(across), x2=at(across), y1=at(y(low)), y2=at(y(high)), class_="stem"
        )
    return element(
        "g",
        element("title", said),
        whisker,
        element(
            "circle", cx=at(across), cy=at(down), r=5, class_="amber" if point.ours else "hollow"
        ),
        element(
            "text",
            point.name,
            x=at(across + (10 if right else -10)),
            y=at(down + 4 if down < FLOOR - 12 else down - 7),
            class_=("name" if right else "name end") + (" ours" if point.ours else ""),
        ),
    )
