"""Both Pareto fronts as one picture: accuracy against length, of the mathematics and the words.

Methods of one family (`topk-k4`, `topk-k8` ...) are one line. Baselines are hollow, controls are
crosses and belong to no line; the grey staircase is the front, the dashed lines are the reference.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unweave.artifact.measurements import Measurement, Measurements
from unweave.artifact.pictures import plotting, save_picture
from unweave.artifact.scores import Interval
from unweave.report.html import clip, visible
from unweave.validate.fronts import WHICH, Front, Which, pair

_SIZE = re.compile(r"-(k|n|penalty|seed)[0-9.]+(e-?[0-9]+)?")
_MARKERS = {
    "dictionary": "o", "transcoder": "^", "decompiled": "*", "baseline": "s", "control": "x",
}  # fmt: skip
_TITLES = {"mathematical": "The mathematics", "semantic": "The words"}
_LONGEST_NAME = 32
_LEAST = 1e-4
"""Where a logarithmic axis puts what is zero, bits per token."""


def family(name: str) -> str:
    """A method's name without its size, sparsity and seed.

    >>> family("topk-short-k16"), family("clusters-n64-seed1")
    ('topk-short', 'clusters')
    """
    return _SIZE.sub("", name)


def draw_fronts(
    measured: Measurements, fronts: Mapping[Which, Front], paths: Sequence[Path]
) -> None:
    """Draw both fronts into files, png or svg by their names' endings.

    Raises:
        UserError: matplotlib is not installed.
    """
    plt = plotting("studies")
    figure, panels = plt.subplots(1, 2, figsize=(12, 6.4), layout="constrained")
    colours = _colours(plt, measured.methods)
    for panel, which in zip(panels, WHICH, strict=True):
        _panel(panel, measured.methods, which, fronts[which], colours)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    _say(figure.suptitle, f"{measured.subject.name}, {measured.place}, {measured.text.name}")
    for path in paths:
        save_picture(figure, path)
    plt.close(figure)


def _colours(plt: Any, methods: Sequence[Measurement]) -> dict[str, Any]:
    names = list(dict.fromkeys(family(m.name) for m in methods if m.kind != "control"))
    palette = [*plt.get_cmap("tab20").colors[::2], *plt.get_cmap("tab20").colors[1::2]]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _panel(
    panel: Any,
    methods: Sequence[Measurement],
    which: Which,
    front: Front,
    colours: Mapping[str, Any],
) -> None:
    by_name = {method.name: method for method in methods}
    corner = _positive(front.reference_length), _positive(front.reference_loss)
    panel.axvline(corner[0], color="0.7", linestyle="--", linewidth=0.8)
    panel.axhline(corner[1], color="0.7", linestyle="--", linewidth=0.8)
    steps = [pair(by_name[name], which) for name in front.front]
    panel.step(
        [_positive(length.value) for length, _ in steps],
        [_positive(loss.value) for _, loss in steps],
        where="post", color="0.8", linewidth=5, zorder=0, label="front",
    )  # fmt: skip
    for name, colour in colours.items():
        members = [m for m in methods if m.kind != "control" and family(m.name) == name]
        _line(panel, name, members, which, colour)
    for control in (m for m in methods if m.kind == "control"):
        _line(panel, control.name, [control], which, "0.35")
    panel.set(xscale="log", yscale="log", xlabel="length, bits per token", title=_TITLES[which])
    panel.set_ylabel("KL from the network, bits per token")
    panel.grid(visible=True, which="major", color="0.92")


def _line(panel: Any, name: str, members: Sequence[Measurement], which: Which, colour: Any) -> None:
    members = sorted(members, key=lambda m: pair(m, which)[0].value)
    lengths, losses = zip(*(pair(member, which) for member in members), strict=True)
    marker = _MARKERS[members[0].kind]
    hollow = members[0].kind == "baseline"
    drawn = panel.errorbar(
        [_positive(length.value) for length in lengths],
        [_positive(loss.value) for loss in losses],
        xerr=_whiskers(lengths), yerr=_whiskers(losses),
        color=colour, marker=marker, markerfacecolor="none" if hollow else colour,
        markersize=9 if marker == "*" else 5, linewidth=1, elinewidth=0.7,
    )  # fmt: skip
    _say(drawn.set_label, name)
    place = _positive(lengths[-1].value), _positive(losses[-1].value)
    _say(panel.annotate, name, xy=place, xytext=(4, 3), textcoords="offset points", fontsize=7)


def _whiskers(numbers: Sequence[Interval]) -> list[list[float]]:
    """How far down and up each interval reaches from where its number is drawn."""
    low = [_positive(n.value) - _positive(n.value if n.low is None else n.low) for n in numbers]
    high = [_positive(n.value if n.high is None else n.high) - _positive(n.value) for n in numbers]
    return [low, high]


def _positive(value: float) -> float:
    return max(value, _LEAST)


def _say(say: Any, text: str, **where: Any) -> None:
    """Put a stranger's text into the picture: nothing in it hides, reorders or is a formula."""
    clean = clip(visible(text), _LONGEST_NAME * (4 if say.__name__ == "suptitle" else 1))
    said = say(clean.replace("$", r"\$"), **where)
    if hasattr(said, "set_parse_math"):
        said.set_parse_math(False)
