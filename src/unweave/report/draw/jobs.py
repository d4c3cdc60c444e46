"""One job of attention over a piece of text: from which tokens to which it moves, and which heads.

A row for each query, a column for each key, as text runs: a cell is amber by how much more
attention the query pays to the key because of the job, red by how much less. The drawing says its
colours itself, so that it can stand alone in a file.
"""

from collections.abc import Sequence

from unweave.report.draw.attention_sources import heads_bars, spelled
from unweave.report.draw.axis import at
from unweave.report.html import Markup, element
from unweave.report.numbers import signed

CELL, MARGIN, LETTER, LONGEST = 15.0, 8.0, 6.4, 12
"""Side of a cell, white around, width of a letter, and letters shown of a token."""
_FOR, _AGAINST, _INK, _RULE = "#d98a0b", "#b3412e", "#1d1b16", "#d8d3c8"
_MONO = "ui-monospace, Menlo, Consolas, monospace"
_FAINT = 0.02
"""Shares of the darkest cell below this are left white."""


def job_pattern(
    title: str,
    pieces: Sequence[str],
    moved: Sequence[Sequence[float]],
    by_head: Sequence[float],
) -> Markup:
    """Draw what a job moves over `pieces`: `moved[query][key]`, attention with it less without.

    `by_head` are the job's loadings of heads. Keys after their query are not looked at.
    """
    names = [spelled(piece, LONGEST) for piece in pieces]
    gutter = MARGIN + LETTER * max([len(name) for name in names] + [1]) + 6
    top = max([abs(row[k]) for q, row in enumerate(moved) for k in range(q + 1)] + [1e-12])
    first = 24 + gutter - MARGIN
    cells = [
        _cell(names, query, key, value, value / top, gutter, first)
        for query, row in enumerate(moved[: len(names)])
        for key, value in enumerate(row[: query + 1])
        if abs(value) >= _FAINT * top
    ]
    side = CELL * len(names)
    bars, height = heads_bars(by_head, first + side + 12)
    # Bars have a width of their own.
    width = max(gutter + side + MARGIN, 720.0)
    return element(
        "svg",
        element("title", title),
        element("text", title, x=at(MARGIN), y=16, fill=_INK, font_size=13),
        _corner(gutter, first, side),
        [_names(name, place, gutter, first) for place, name in enumerate(names)],
        cells,
        bars,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {at(width)} {at(height)}",
        font_family="system-ui, sans-serif",
        class_="job",
        role="img",
    )


def _cell(
    names: Sequence[str],
    query: int,
    key: int,
    value: float,
    share: float,
    left: float,
    first: float,
) -> Markup:
    colour, kind = (_FOR, "amber") if share >= 0 else (_AGAINST, "worse")
    return element(
        "rect",
        element("title", f"{names[query]} at {query} to {names[key]} at {key}: {signed(value, 3)}"),
        x=at(left + key * CELL), y=at(first + query * CELL), width=at(CELL), height=at(CELL),
        class_=kind, fill=colour, fill_opacity=f"{min(abs(share), 1.0):.2f}",
    )  # fmt: skip


def _names(name: str, place: int, left: float, first: float) -> list[Markup]:
    """A token beside its row and above its column."""
    text = name.replace(" ", "\u00a0")
    x, y = left + (place + 0.7) * CELL, first - 4
    style: dict[str, str | int] = {"fill": _INK, "font_size": 10, "font_family": _MONO}
    return [
        element(
            "text", text, x=at(left - 4), y=at(first + (place + 0.75) * CELL), text_anchor="end",
            **style,
        ),
        element("text", text, x=at(x), y=at(y), transform=f"rotate(-90 {at(x)} {at(y)})", **style),
    ]  # fmt: skip


def _corner(left: float, first: float, side: float) -> Markup:
    """The line above which nothing is looked at."""
    return element(
        "line", x1=at(left), y1=at(first), x2=at(left + side), y2=at(first + side), stroke=_RULE,
        class_="rule",
    )  # fmt: skip
