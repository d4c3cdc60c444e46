"""Turn results.jsonl into the table of README.md and a picture.

python studies/suppression/table.py
"""

import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
ORDER = ("L1", "more L1 steps", "one factor", "scale", "scale, closed form", "decoder")


def main() -> None:
    lines = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    groups: dict[tuple, dict[str, dict]] = {}
    for line in lines:
        place = line["subject"], line["layer"], line["seed"], line["weight"]
        groups.setdefault(place, {})[line["variant"]] = line
    rows = [
        "| subject, layer, seed, lambda | variant | L0 | MSE | change | CE increase | perplexity "
        "increase | change | L2 ratio | gamma | strength |",
        "|---" * 11 + "|",
    ]
    for place, group in sorted(groups.items()):
        before = group["L1"]
        for variant in ORDER:
            line = group[variant]
            rows.append(
                f"| {place[0]} {place[1]}, {place[2]}, {place[3]:g} | {variant} "
                f"| {line['l0']:.1f} | {line['mse']:.4f} | {change(line, before, 'mse')} "
                f"| {line['ce_increase']:.3f} ({line['ce_low']:.3f}-{line['ce_high']:.3f}) "
                f"| {line['perplexity_increase']:.3f} "
                f"| {change(line, before, 'perplexity_increase')} | {line['l2_ratio']:.3f} "
                f"| {line['gamma']:.3f} | {line['strength']:.3f} |"
            )
    new = "<!-- table -->\n" + "\n".join(rows) + "\n<!-- end table -->"
    page = HERE / "README.md"
    text = re.sub("<!-- table -->.*<!-- end table -->", lambda _: new, page.read_text(), flags=re.S)
    page.write_text(text)
    draw(groups)


def change(line: dict, before: dict, what: str) -> str:
    return "" if line is before else f"{line[what] / before[what] - 1:+.1%}"


def draw(groups: dict[tuple, dict[str, dict]]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    shown = ORDER[1:][::-1]
    for axis, what, published in (
        (axes[0], "mse", -0.09),
        (axes[1], "perplexity_increase", -0.24),
    ):
        for place, group in sorted(groups.items()):
            values = [group[v][what] / group["L1"][what] - 1 for v in shown]
            label = f"{place[0]} {place[1]}, lambda {place[3]:g}"
            axis.plot(values, shown, "o", label=None if place[2] else label, alpha=0.7)
        axis.axvline(0, color="grey", lw=0.5)
        axis.axvline(published, color="black", ls=":", lw=1, label="published")
        axis.set_xlabel(f"change of {what.replace('_', ' ')}")
    axes[1].legend(frameon=False, fontsize=7)
    figure.savefig(HERE / "changes.png", dpi=110)


if __name__ == "__main__":
    main()
