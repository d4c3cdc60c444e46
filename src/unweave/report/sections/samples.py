"""The same prompt continued by the original and by the decompiled network."""

from collections.abc import Sequence

from unweave.report.facts import Sample
from unweave.report.html import Child, Markup, clip, element
from unweave.report.sections.frame import absent, section

LIMIT = 2000
"""Characters shown of a prompt or a continuation."""


def samples(pairs: Sequence[Sample] | None) -> Markup:
    """Side by side, with the first difference marked."""
    lead = (
        "Both networks continue the same prompt. What they agree on is grey; the first word that "
        "differs is marked. After it the two have read different texts."
    )
    title = "The same prompt, twice"
    if not pairs:
        words = "This artifact holds no continuations."
        return section("samples", title, lead, absent(words))
    return section("samples", title, lead, [_pair(pair) for pair in pairs])


def _pair(pair: Sample) -> Markup:
    original, decompiled = clip(pair.original, LIMIT), clip(pair.decompiled, LIMIT)
    same = agreement(original, decompiled)
    equal = original == decompiled
    columns = [
        element("div", element("h4", name), element("p", _marked(words, same), dir="auto"))
        for name, words in (("Original", original), ("Decompiled", decompiled))
    ]
    verdict = "Identical." if equal else f"The first {same:,} characters agree."
    return element(
        "article",
        element("p", clip(pair.prompt, LIMIT), class_="prompt", dir="auto"),
        element("div", columns, class_="pair"),
        element("p", verdict, class_="note"),
        class_="sample",
    )


def agreement(one: str, other: str) -> int:
    """Characters that both begin with, cut back to the start of the word that differs."""
    if one == other:
        return len(one)
    pairs = enumerate(zip(one, other, strict=False))
    same = next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
    while same and not one[same - 1].isspace():
        same -= 1
    return same


def _marked(words: str, same: int) -> list[Child]:
    rest = words[same:]
    cut = next((index for index, sign in enumerate(rest) if sign.isspace()), len(rest))
    return [
        element("span", words[:same], class_="same") if same else None,
        element("mark", rest[:cut]) if cut else None,
        rest[cut:],
    ]
