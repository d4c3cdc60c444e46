"""Keep a finished artifact's numbers in a study's folder: scores.json and a picture of them.

    python studies/record.py ARTIFACT STUDY

Writes STUDY/scores.json (the artifact's own, byte for byte) and STUDY/fidelity.png: what replacing
one part at a time costs, by layer, and what replacing everything costs beside its rivals.
"""

import shutil
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unweave.artifact.layout import SCORES
from unweave.artifact.scores import PartScore, Scores, read_scores

KINDS = {
    "mlp": ("MLP", "#b5651d"),
    "attn": ("attention", "#3b5b7a"),
    "q": ("queries", "#5f8f5f"),
    "k": ("keys", "#8a6fa8"),
}
"""Kinds of parts, as they are drawn."""


def main(artifact: Path, study: Path) -> None:
    study.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(artifact / SCORES, study / SCORES)
    draw(read_scores(artifact / SCORES), study / "fidelity.png")


def draw(scores: Scores, path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for kind, (label, colour) in KINDS.items():
        parts = [part for part in scores.parts if part.part.endswith(f".{kind}")]
        if not parts:
            continue
        layers = [int(part.part[1:].split(".")[0]) for part in parts]
        left.errorbar(
            layers,
            [part.single.ce_increase.value for part in parts],
            yerr=list(zip(*(ends(part) for part in parts), strict=True)),
            color=colour,
            label=label,
            marker="o",
            markersize=3,
            linewidth=1,
        )
    left.set(xlabel="layer", ylabel="CE increase, nats/token", title="one part replaced (single)")
    left.axhline(0, color="grey", linewidth=0.5)
    left.legend(frameon=False)
    rows = {"decompiled": scores.splice.propagated.ce_increase.value}
    rows |= {name: found.math_accuracy.value for name, found in scores.baselines.items()}
    rows |= {name: found.ce_increase.value for name, found in scores.controls.items()}
    names = list(rows)[::-1]
    right.barh(names, [rows[name] for name in names], color="#777777", height=0.6)
    for at, name in enumerate(names):
        right.annotate(f" {rows[name]:.3f}", (rows[name], at), va="center", fontsize=8)
    right.set(xlabel="CE increase, nats/token", title="everything replaced (propagated)")
    right.margins(x=0.15)
    figure.savefig(path, dpi=110)


def ends(part: PartScore) -> tuple[float, float]:
    found = part.single.ce_increase
    if found.low is None or found.high is None:
        return 0.0, 0.0
    return found.value - found.low, found.high - found.value


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
