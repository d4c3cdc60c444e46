"""What all sections share: the heading, the table, the token."""

import re
from collections.abc import Iterable, Sequence

from unweave.report.html import Child, Markup, clip, element

_QUOTED = re.compile(r'"([^"]{1,80})"')
_SIGNS = str.maketrans({" ": "·", "␣": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def section(name: str, title: str, lead: Child, *body: Child) -> Markup:
    """A section with its heading and the sentence that says how to read it."""
    head = element("h2", title)
    return element("section", head, element("p", lead, class_="lead"), *body, id=name)


def absent(what: str) -> Markup:
    """The sentence that stands where something is missing."""
    return element("p", what, class_="absent")


def table(
    heads: Sequence[Child], lines: Iterable[Sequence[Child]], *, class_: str | None = None
) -> Markup:
    """A table whose first column names the row; it scrolls by itself where a page is narrow."""
    top = element("thead", element("tr", [element("th", head, scope="col") for head in heads]))
    body = element(
        "tbody",
        [
            element("tr", element("th", line[0], scope="row"), [element("td", c) for c in line[1:]])
            for line in lines
        ],
    )
    return element("div", element("table", top, body, class_=class_), class_="scroll")


def token(piece: str, *, limit: int = 40) -> Markup:
    """A token with its blanks made visible: `·the`, `⏎`; the empty token is ∅."""
    return element("bdi", clip(piece, limit).translate(_SIGNS) or "∅", class_="tok")


def worded(words: str, limit: int) -> list[Child]:
    """A description, cut to `limit` characters, with the tokens it quotes set as tokens."""
    pieces = _QUOTED.split(clip(words, limit))
    return [token(piece) if odd % 2 else piece for odd, piece in enumerate(pieces)]


def chart(drawing: Markup, caption: Child, key: Child = None) -> Markup:
    """A drawing with its key above and its caption below."""
    return element(
        "figure",
        element("p", key, class_="key") if key is not None else None,
        drawing,
        element("figcaption", caption) if caption is not None else None,
    )


def swatch(kind: str, words: str) -> Markup:
    """One entry of a drawing's key: the mark's own class and what it stands for."""
    return element("span", element("i", class_=f"swatch {kind}"), words)
