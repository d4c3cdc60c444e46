"""One attention latent at one token: which tokens it reads from, and through which heads.

Tokens are boxed by what arrives from each (amber for, red against); the token at which the latent
was looked at has a frame. Below, a bar a head. The drawing says its colours itself, so that it can
stand alone in a file; a page's style sheet may say others.
"""

from collections.abc import Sequence

from unweave.report.draw.axis import Scale, at
from unweave.report.html import Markup, clip, element, visible
from unweave.report.numbers import signed

WIDTH, MARGIN, LINE, LETTER = 720.0, 8.0, 24.0, 7.3
LONGEST = 24
"""Letters shown of a token."""
_FOR, _AGAINST, _INK = "#d98a0b", "#b3412e", "#1d1b16"
_MONO = "ui-monospace, Menlo, Consolas, monospace"
_SHOWN = str.maketrans({"\n": "⏎", "\t": "⇥", "\r": "␍"})


def attention_sources(
    title: str,
    pieces: Sequence[str],
    by_source: Sequence[float],
    by_head: Sequence[float],
    *,
    position: int,
) -> Markup:
    """Draw one place: `by_source` has a number for each of `pieces`, `by_head` one for each head.

    What comes after `position` is left out: nothing arrives from there.
    """
    shown = min(position + 1, len(pieces))
    top = max([abs(value) for value in by_source[:shown]] + [1e-12])
    drawn, y = _tokens(pieces[:shown], by_source[:shown], top, position)
    bars, height = heads_bars(by_head, y + 12)
    return element(
        "svg",
        element("title", title),
        element("text", title, x=at(MARGIN), y=16, class_="name", fill=_INK, font_size=13),
        drawn,
        bars,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {at(WIDTH)} {at(height)}",
        font_family="system-ui, sans-serif",
        class_="attention-sources",
        role="img",
    )


def _tokens(
    pieces: Sequence[str], values: Sequence[float], top: float, position: int
) -> tuple[list[Markup], float]:
    """The tokens in lines, and where the next thing may begin."""
    x, y, drawn = MARGIN, 28.0, []
    for place, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        text = spelled(piece, LONGEST)
        width = max(len(text), 1) * LETTER + 4
        if x + width > WIDTH - MARGIN and x > MARGIN:
            x, y = MARGIN, y + LINE
        drawn.append(_token(text, value, x, y, width, value / top, place, place == position))
        x += width + 1
    return drawn, y + LINE


def _token(
    text: str,
    value: float,
    x: float,
    y: float,
    width: float,
    share: float,
    place: int,
    here: bool,
) -> Markup:
    colour, kind = (_FOR, "amber") if share >= 0 else (_AGAINST, "worse")
    return element(
        "g",
        element("title", f"{text} at {place}: {signed(value, 3)}"),
        element(
            "rect", x=at(x), y=at(y), width=at(width), height=at(LINE - 5), rx=2, class_=kind,
            fill=colour, fill_opacity=f"{abs(share):.2f}",
            stroke=_INK if here else None, stroke_width="1.5" if here else None,
        ),
        element(
            "text", _unbroken(text), x=at(x + 2), y=at(y + 13), fill=_INK, font_size=12,
            font_family=_MONO, textLength=at(max(len(text), 1) * LETTER),
        ),
    )  # fmt: skip


def spelled(piece: str, longest: int) -> str:
    """A token as a drawing shows it: nothing hidden, line breaks as signs, cut where long."""
    return clip(visible(piece).translate(_SHOWN), longest)


def _unbroken(text: str) -> str:
    """Blanks that an SVG does not swallow at the ends of a text."""
    return text.replace(" ", "\u00a0")


def heads_bars(values: Sequence[float], y: float) -> tuple[list[Markup], float]:
    """A bar a head from a common zero, and where the drawing ends."""
    low, high = min([0.0, *values]), max([0.0, *values, 1e-12])
    scale = Scale(low, high, 70.0, WIDTH - 90.0)
    zero, drawn = scale(0.0), []
    for head, value in enumerate(values):
        end = scale(value)
        colour, kind = (_FOR, "amber") if value >= 0 else (_AGAINST, "worse")
        drawn += [
            element(
                "text", f"head {head}", x=at(MARGIN), y=at(y + 11), class_="tick", font_size=11,
            ),
            element(
                "rect", x=at(min(zero, end)), y=at(y + 2), width=at(max(abs(end - zero), 0.5)),
                height=11, class_=kind, fill=colour,
            ),
            element(
                "text", signed(value, 3), x=at(max(zero, end) + 5), y=at(y + 11), class_="tick",
                font_size=11,
            ),
        ]  # fmt: skip
        y += 17
    return drawn, y + 6
