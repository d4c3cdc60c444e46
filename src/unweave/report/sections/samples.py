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
        "Both networks continue the same prompt, each with its likeliest words unless it says "
        "otherwise. What they agree on is grey; the first word that differs is marked. After it "
        "the two have read different texts."
    )
    title = "The same prompt, twice"
    if not pairs:
        words = "This artifact holds no continuations."
        return section("samples", title, lead, absent(words))
    return section("samples", title, lead, [_pair(pair) for pair in pairs])


def _pair(pair: Sample) -> Markup:
    original, decompiled = clip(pair.original, LIMIT), clip(pair.decompiled, LIMIT)
    same = agreement(original, decompiled)
    columns = [
        element("div", element("h4", name), element("p", _marked(words, same), dir="auto"))
        for name, words in (("Original", original), ("Decompiled", decompiled))
    ]
    verdict = "They agree to the end." if original == decompiled else _verdict(original[:same])
    if pair.temperature:
        verdict = f"Drawn by the same chance, at temperature {pair.temperature:g}. {verdict}"
    return element(
        "article",
        element("p", lines(clip(pair.prompt, LIMIT).strip(" ")), class_="prompt", dir="auto"),
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


def _verdict(same: str) -> str:
    words = len(same.split())
    if words == 0:
        return "They differ from the first word."
    return f"The first {words:,} words agree." if words > 1 else "The first word agrees."


def lines(words: str) -> str:
    """Text with its line ends made visible."""
    return words.replace("\r", "␍").replace("\n", "⏎\n")


def _marked(words: str, same: int) -> list[Child]:
    rest = words[same:]
    cut = next((index for index, sign in enumerate(rest) if sign.isspace()), len(rest))
    return [
        element("span", lines(words[:same]), class_="same") if same else None,
        element("mark", rest[:cut]) if cut else None,
        lines(rest[cut:]),
    ]
