"""numbers.json and the pictures of this study, from what run.py has kept.

python studies/circuits/report.py STORE
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unweave.circuits.choosing import SIZES

HERE = Path(__file__).parent
COLOURS = {
    "eap": "#3b5b7a", "eap_ig": "#b5651d", "nodes": "#6b8e4e", "weights": "#8a6fa8",
    "random": "#999999",
}  # fmt: skip
CURVES = {
    "latents": ("#b5651d", "latents and errors"), "without_errors": ("#d8a06b", "latents alone"),
    "neurons": ("#3b5b7a", "neurons"), "random_nodes": ("#999999", "nodes in random order"),
    "random_dictionary_without_errors": ("#bbbbbb", "random directions alone"),
}  # fmt: skip


def finished(folder: Path) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["result"]
        for path in sorted(folder.glob("*.json"))
    }


def draw_mib(tasks: dict[str, Any], path: Path) -> None:
    done = {name: one for name, one in tasks.items() if "methods" in one}
    figure, axes = plt.subplots(
        1, len(done), figsize=(4 * len(done), 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for axis, (name, one) in zip(axes[0], done.items(), strict=True):
        for method, found in one["methods"].items():
            label = f"{method} ({found['cmd']['value']:.2f})"
            f = found["faithfulness_magnitude"]
            axis.plot(SIZES, f, color=COLOURS[method], marker="o", markersize=3, label=label)
        axis.axhline(1, color="#dddddd", zorder=0)
        axis.set(xscale="log", xlabel="share of edges kept", title=f"{name} (CMD)")
        axis.legend(fontsize=7, frameon=False)
    axes[0][0].set_ylabel("faithfulness")
    figure.savefig(path, dpi=130)


def draw_sva(tasks: dict[str, Any], path: Path) -> None:
    done = {name: one for name, one in tasks.items() if "curves" in one}
    figure, axes = plt.subplots(
        2, len(done), figsize=(4 * len(done), 5.6), sharey=True, layout="constrained", squeeze=False
    )
    for column, (name, one) in enumerate(done.items()):
        for row, measure in enumerate(("faithfulness", "completeness")):
            axis = axes[row][column]
            for curve, (colour, label) in CURVES.items():
                found = one["curves"].get(curve)
                if found:
                    shares = [share["value"] for share in found[measure]]
                    axis.plot(
                        found["nodes"], shares, color=colour, marker="o", markersize=3, label=label
                    )
            axis.axhline(1 - row, color="#dddddd", zorder=0)
            axis.set(xscale="log", xlabel="nodes", title=name if row == 0 else "")
        axes[0][column].legend(fontsize=7, frameon=False)
    axes[0][0].set_ylabel("faithfulness of the circuit")
    axes[1][0].set_ylabel("of everything else")
    figure.savefig(path, dpi=130)


def main(store: Path) -> None:
    tracks = finished(store / "mib")
    agreement = {folder.parent.name: finished(folder) for folder in sorted(store.glob("*/sva"))}
    agreement.pop("wren", None)
    wren = json.loads((store / "wren.json").read_text(encoding="utf-8"))
    numbers = {"mib": tracks, "sva": agreement, "wren": wren}
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    draw_mib(tracks, HERE / "mib.png")
    draw_sva(agreement["batchtopk-k32"], HERE / "sva.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
