"""Fidelity along the depth of the network."""

from collections.abc import Sequence
from typing import NamedTuple

from unweave.report.draw.axis import Scale, at, rows
from unweave.report.html import Markup, element
from unweave.report.numbers import plain, signed

WIDTH, LEFT, RIGHT = 480, 46, 474
FVU_TOP, FVU_FLOOR, CE_TOP, CE_FLOOR = 22, 128, 168, 254


class Stop(NamedTuple):
    """One part on the way through the network."""

    name: str
    layer: int
    kind: str
    fvu: float
    fvu_robust: float
    rise: float
    """Of the loss in nats, this part alone replaced."""


def fidelity(
    title: str, stops: Sequence[Stop], *, fvu_high: float, losses: tuple[float, float]
) -> Markup:
    """Two plots on one axis of layers: FVU (robust filled, raw hollow) above, loss rise below.

    `fvu_high`, `losses` (low, high): the scales' ends, shared by panels that are to be compared.
    """
    last = max(stop.layer for stop in stops)
    x = Scale(-0.5, last + 0.5, LEFT, RIGHT)
    return element(
        "svg",
        element("title", title),
        element("text", "Variance unexplained", x=LEFT, y=12, class_="name"),
        _fvu(stops, x, Scale(0.0, fvu_high, FVU_FLOOR, FVU_TOP)),
        element("text", "Loss rise, this part alone (nats)", x=LEFT, y=CE_TOP - 10, class_="name"),
        _loss(stops, x, Scale(*losses, CE_FLOOR, CE_TOP)),
        _depth(x, last),
        viewBox=f"0 0 {WIDTH} 284",
        role="img",
    )


def _fvu(stops: Sequence[Stop], x: Scale, y: Scale) -> list[Markup]:
    drawn = rows(y, LEFT, RIGHT, 3)
    for stop in stops:
        here, raw, robust = at(x(stop.layer)), at(y(stop.fvu)), at(y(stop.fvu_robust))
        said = f"{stop.name}: FVU {plain(stop.fvu)} raw, {plain(stop.fvu_robust)} robust"
        drawn.append(
            element(
                "g",
                element("title", said),
                element("line", x1=here, x2=here, y1=raw, y2=robust, class_="stem"),
                element("circle", cx=here, cy=raw, r=3, class_="hollow"),
                element("circle", cx=here, cy=robust, r=3, class_="ink"),
            )
        )
    return drawn


def _loss(stops: Sequence[Stop], x: Scale, y: Scale) -> list[Markup]:
    drawn = rows(y, LEFT, RIGHT, 3)
    width = min(14.0, 0.7 * (RIGHT - LEFT) / (x.high - x.low))
    zero = y(0.0)
    for stop in stops:
        end = y(stop.rise)
        drawn.append(
            element(
                "rect",
                element("title", f"{stop.name}: {signed(stop.rise, 4)} nats"),
                x=at(x(stop.layer) - width / 2),
                y=at(min(zero, end)),
                width=at(width),
                height=at(max(abs(end - zero), 1.0)),
                class_="worse" if stop.rise >= 0 else "better",
            )
        )
    return drawn


def _depth(x: Scale, last: int) -> list[Markup]:
    every = next(step for step in (1, 2, 5, 10, 20, 50, 10**9) if last / step <= 16)
    numbers = [
        element("text", layer, x=at(x(layer)), y=CE_FLOOR + 15, class_="tick middle")
        for layer in range(0, last + 1, every)
    ]
    return [*numbers, element("text", "layer", x=RIGHT, y=CE_FLOOR + 28, class_="tick end")]
