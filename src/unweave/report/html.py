"""Markup that is escaped by construction.

Everything a model, a tokenizer, a data set or a person wrote is hostile text. A page is built from
`element(...)` alone: what is not already `Markup` is cleaned (`visible`) and escaped, attribute
names are checked, and attributes that could load or run anything are refused. So no section has
to remember to escape, and none can forget.
"""

import html
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

_ATTRIBUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*\Z")
_TAG = re.compile(r"[a-zA-Z][a-zA-Z0-9]*\Z")
_REFUSED = frozenset({"src", "srcset", "style", "action", "formaction", "data", "poster", "ping"})
_VOID = frozenset({"br", "hr", "input", "meta", "wbr"})
_HIDDEN = {
    0x00AD: "SHY", 0x061C: "ALM", 0x180E: "MVS", 0x200B: "ZWSP", 0x200E: "LRM", 0x200F: "RLM",
    0x2028: "LS", 0x2029: "PS", 0x202A: "LRE", 0x202B: "RLE", 0x202C: "PDF", 0x202D: "LRO",
    0x202E: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI",
    0xFEFF: "BOM",
}  # fmt: skip
_CLEAN: dict[int, str] = {code: f"⟦{name}⟧" for code, name in _HIDDEN.items()}
_CLEAN |= {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
_CLEAN |= {code: "\ufffd" for code in (*range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)}


class Markup(str):
    """A string that is already safe markup; only this module makes it from plain text."""

    __slots__ = ()


if TYPE_CHECKING:
    Child = Markup | str | int | None | Iterable["Child"]
else:
    Child = object  # beartype follows no type that holds itself; `text` checks instead
"""What may stand inside an element; `None` is left out and plain strings are escaped."""


def visible(text: str) -> str:
    """`text` without characters that hide, reorder or break text: each shows as a sign instead.

    C0 controls become their pictures (NUL is ␀), bidirectional and zero-width marks their names
    in ⟦ ⟧, lone surrogates and C1 controls U+FFFD. Joiners inside emoji stay.
    """
    return text.translate(_CLEAN)


def clip(text: str, limit: int) -> str:
    """`text`, or its first `limit - 1` characters and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text(child: Child) -> Markup:
    """Markup of anything that may stand inside an element."""
    if child is None:
        return Markup("")
    if isinstance(child, Markup):
        return child
    if isinstance(child, int):
        return Markup(str(child))
    if isinstance(child, str):
        return Markup(html.escape(visible(child), quote=True))
    if isinstance(child, Iterable) and not isinstance(child, bytes):
        return Markup("".join([text(one) for one in child]))
    raise TypeError(f"{type(child).__name__} cannot stand on a page")


def element(tag: str, *children: Child, **attributes: str | int | bool | None) -> Markup:
    """`<tag attributes>children</tag>`.

    Attribute names: a trailing `_` is dropped and `_` becomes `-`, so `class_`, `data_part`. A
    value of None or False leaves the attribute out, True writes it bare.

    >>> element("b", "1 < 2", class_="sum")
    '<b class="sum">1 &lt; 2</b>'
    """
    if not _TAG.match(tag) or tag.lower() in {"script", "style", "iframe", "object", "embed"}:
        raise ValueError(f"no element may be called {tag!r}")
    head = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        if children:
            raise ValueError(f"<{tag}> holds nothing")
        return Markup(f"<{tag}{head}>")
    return Markup(f"<{tag}{head}>{text(children)}</{tag}>")


def _attribute(name: str, value: str | int | bool | None) -> str:
    """One attribute with its leading blank, or nothing."""
    name = name.rstrip("_").replace("_", "-")
    lower = name.lower()
    if not _ATTRIBUTE.match(name) or lower.startswith("on") or lower in _REFUSED:
        raise ValueError(f"no element may have an attribute {name!r}")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if lower == "href" and not str(value).startswith("#"):
        raise ValueError("a page links to places in itself alone")
    return f' {name}="{html.escape(visible(str(value)), quote=True)}"'


def inline(tag: str, source: str) -> Markup:
    """A `<style>` or `<script>` block of this package's own text, never of anybody else's."""
    if tag not in {"style", "script"} or "</" in source or "<!--" in source:
        raise ValueError(f"not fit to stand inside <{tag}>")
    return Markup(f"<{tag}>{source}</{tag}>")
