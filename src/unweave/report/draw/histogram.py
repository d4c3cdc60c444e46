"""Histograms: a feature's activations, and scores against their control."""

import math
from collections.abc import Sequence

from unweave.report.draw.axis import Coordinate, Scale, at, label
from unweave.report.html import Markup, element

WIDTH, HEIGHT = 220, 44


def activations(counts: Sequence[int], edges: Sequence[float]) -> Markup:
    """How often a feature fires how strongly: bins as stored, height by log(1 + count).

    Empty bins at both ends are left out, so that the drawing shows where this feature lives.
    """
    filled = [index for index, count in enumerate(counts) if count > 0]
    if not filled or len(edges) != len(counts) + 1:
        return element("p", "No firings were counted.", class_="absent")
    first, last = filled[0], filled[-1] + 1
    shown = counts[first:last]
    top = math.log1p(max(shown))
    width = WIDTH / max(len(shown), 8)
    path = "".join(
        f"M{at(index * width)} {HEIGHT}v{at(-max(math.log1p(count) / top * HEIGHT, 1))}"
        f"h{at(width * 0.84)}V{HEIGHT}z"
        for index, count in enumerate(shown)
        if count > 0
    )
    low, high = label_short(edges[first]), label_short(edges[last])
    return element(
        "svg",
        element("title", f"{sum(counts):,} firings between {low} and {high}"),
        element("path", d=path, class_="amber"),
        element("line", x1=0, x2=WIDTH, y1=HEIGHT, y2=HEIGHT, class_="rule"),
        element("text", low, x=0, y=HEIGHT + 12, class_="tick"),
        element("text", high, x=at(len(shown) * width), y=HEIGHT + 12, class_="tick end"),
        viewBox=f"0 0 {WIDTH} {HEIGHT + 15}",
        class_="activations",
        role="img",
    )


def label_short(number: Coordinate) -> str:
    """A bin's border with two significant digits."""
    return f"{number:.2g}" if 1e-3 <= abs(number) < 1e4 else f"{number:.0e}"


def against_control(
    values: Sequence[float], control: Sequence[float], *, mean: float, bins: int = 25
) -> Markup:
    """Scores in [0, 1]: filled bars for `values`, an outline of equal area for `control`.

    Where no control scores are at hand, a line at their `mean` stands for them.
    """
    width, height, left, floor = 480, 170, 8, 140
    x = Scale(0.0, 1.0, left, width - 8)
    mine, theirs = _shares(values, bins), _shares(control, bins)
    top = max([*mine, *theirs, 1e-9])
    y = Scale(0.0, top, floor, 14)
    step = (width - 8 - left) / bins
    bars = "".join(
        f"M{at(left + index * step)} {floor}V{at(y(share))}h{at(step * 0.88)}V{floor}z"
        for index, share in enumerate(mine)
        if share > 0
    )
    outline = f"M{left} {floor}" + "".join(
        f"V{at(y(share))}H{at(left + (index + 1) * step)}" for index, share in enumerate(theirs)
    )
    ticks = [
        element("text", label(tick), x=at(x(tick)), y=floor + 15, class_="tick middle")
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    chance = at(x(0.5))
    return element(
        "svg",
        element("title", "Distribution of description scores, beside shuffled labels"),
        element("path", d=bars, class_="amber"),
        element("path", d=f"{outline}V{floor}", class_="outline")
        if control
        else element("line", x1=at(x(mean)), x2=at(x(mean)), y1=14, y2=floor, class_="mean"),
        element("line", x1=left, x2=width - 8, y1=floor, y2=floor, class_="rule"),
        element("line", x1=chance, x2=chance, y1=8, y2=floor, class_="chance"),
        ticks,
        element("text", "AUROC on held-out text", x=width - 8, y=height - 1, class_="tick end"),
        viewBox=f"0 0 {width} {height}",
        role="img",
    )


def _shares(values: Sequence[float], bins: int) -> list[float]:
    counts = [0] * bins
    for value in values:
        counts[min(max(int(value * bins), 0), bins - 1)] += 1
    return [count / max(len(values), 1) for count in counts]
