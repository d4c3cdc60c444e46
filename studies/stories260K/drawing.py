"""numbers.json and whole.png of all runs in a folder."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROWS = ("propagated", "clean", "mlps only", "attention only")


def collect(folder: Path) -> None:
    """Gather FOLDER/*.json into FOLDER/../numbers.json and draw them."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    numbers = {one["name"]: one for one in found}
    (folder.parent / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    draw(numbers, folder.parent / "whole.png")


def draw(numbers: dict[str, dict], path: Path) -> None:
    """Left: loss against active latents; right: what else is as large."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    curve = [one for name, one in numbers.items() if ".curve-" in name]
    for gated, label, colour in ((False, "ReLU", "#b5651d"), (True, "gated", "#3b5b7a")):
        points = sorted(
            ((one["active"]["all"], one["after"]) for one in curve if one["gated"] == gated),
            key=lambda point: point[0],
        )
        for mode, style in (("propagated", "o-"), ("clean", "o--")):
            if points:
                left.errorbar(
                    [active for active, _ in points],
                    [after[mode]["ce"][0] for _, after in points],
                    yerr=_ends([after[mode]["ce"] for _, after in points]),
                    fmt=style, color=colour, markersize=3, linewidth=1,
                    label=f"{label}, {mode}",
                )  # fmt: skip
    left.set(xscale="log", xlabel="active latents a layer and token", ylabel="CE increase, nats")
    left.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
    left.set_title("the curve: few tokens, the same for all")
    left.axhline(0, color="grey", linewidth=0.5)
    left.legend(frameon=False)
    bars: dict[str, float] = {}
    for name, one in numbers.items():
        if ".curve-" not in name:
            short = name.split(".", 1)[1]
            bars[short] = one["after"]["propagated"]["ce"][0]
            bars |= {
                f"{rival} ({short})" if rival in ("own neurons", "untrained") else rival: s["ce"][0]
                for rival, s in one["after"].items()
                if isinstance(s, dict) and "ce" in s and rival not in ROWS
            }
    names = sorted(bars, key=lambda name: -bars[name])
    right.barh(names, [bars[name] for name in names], color="#777777", height=0.6)
    for at, name in enumerate(names):
        right.annotate(f" {bars[name]:.3f}", (bars[name], at), va="center", fontsize=8)
    right.set(xlabel="CE increase, nats", title="everything replaced, propagated")
    right.margins(x=0.15)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _ends(intervals: list[list[float]]) -> list[list[float]]:
    """How far an interval reaches below and above its value."""
    return [[v - low for v, low, _ in intervals], [high - v for v, _, high in intervals]]
