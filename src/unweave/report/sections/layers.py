"""How faithful each part is, along the depth of the network."""

from collections.abc import Sequence

from unweave.artifact.scores import PartScore, Scores
from unweave.report.draw.layers import Stop, fidelity
from unweave.report.html import Markup, element
from unweave.report.numbers import percent, plain, signed
from unweave.report.sections.frame import absent, section, swatch, table

LISTED = 5
"""Parts in each of the two lists."""
_KINDS = {"mlp": "MLPs", "attn": "Attention", "q": "Queries", "k": "Keys"}


def layers(scores: Scores) -> Markup:
    """A chart for each kind of part, then the worst and the best."""
    title = "Fidelity by layer"
    lead = (
        "Variance unexplained (FVU) says how well a part copies what it replaces; the rise of the "
        "loss when it alone is replaced says whether the network minds. The two often disagree."
    )
    if not scores.parts:
        return section("layers", title, lead, absent("No part was measured."))
    return section("layers", title, lead, _charts(scores.parts), _lists(scores.parts))


def _charts(parts: Sequence[PartScore]) -> Markup:
    high = max(0.1, *(value for part in parts for value in (part.fvu, part.fvu_robust)))
    rises = [part.single.ce_increase.value for part in parts]
    key = [
        swatch("ink", "FVU, robust"),
        swatch("hollow", "FVU, raw"),
        swatch("worse bar", "loss rise"),
        swatch("better bar", "loss fall") if min(rises) < 0 else None,
    ]
    panels = []
    for kind, name in _KINDS.items():
        stops = [stop for stop in map(_stop, parts) if stop is not None and stop.kind == kind]
        if stops:
            drawing = fidelity(
                name,
                stops,
                fvu_high=min(high * 1.08, 1.5),
                losses=(min(0.0, *rises), max(1e-3, *rises) * 1.08),
            )
            panels.append(element("figure", element("h3", name), drawing))
    words = (
        "Raw FVU can flatter: where a few massive activations carry most of the variance, copying "
        "those is enough. The robust one keeps them from drowning the rest."
    )
    return element(
        "div",
        element("p", key, class_="key"),
        element("div", panels, class_="pair"),
        element("p", words, class_="note"),
    )


def _stop(part: PartScore) -> Stop | None:
    """A part's place in the chart; None for one that is no block of a known layer."""
    layer, _, kind = part.part.removeprefix("L").partition(".")
    if not layer.isdecimal() or kind not in _KINDS:
        return None
    rise = part.single.ce_increase.value
    return Stop(part.part, int(layer), kind, part.fvu, part.fvu_robust, rise)


def _lists(parts: Sequence[PartScore]) -> Markup:
    ordered = sorted(parts, key=lambda part: -part.single.ce_increase.value)
    shown = min(LISTED, len(ordered) // 2)
    pairs = [("Least faithful", ordered[:shown]), ("Most faithful", ordered[::-1][:shown])]
    lists = [
        element("div", element("h3", title), _table(listed)) for title, listed in pairs if listed
    ]
    every = element("details", element("summary", f"All {len(parts)} parts"), _table(parts))
    return element("div", element("div", lists, class_="pair"), every)


def _table(parts: Sequence[PartScore]) -> Markup:
    heads = ["part", "loss rise", "FVU", "robust", "alive", "active"]
    lines = [
        [
            element("code", part.part),
            signed(part.single.ce_increase.value, 4),
            plain(part.fvu),
            plain(part.fvu_robust),
            percent(part.alive_fraction),
            plain(part.l0, 1),
        ]
        for part in parts
    ]
    return table(heads, lines)
