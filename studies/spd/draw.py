"""The picture and the cross-seed control of the study: python studies/spd/draw.py RUNS.

spd.png: how far the pieces match the weights' columns, and how important each piece is for each
feature shown alone. The control goes to swapped.json: pieces of one seed held against the target
of the next, which must fail.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from cases import CASES
from run import NUMBERS
from torch import Tensor

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import load_tensors
from unweave.dictionaries.components.components import Components
from unweave.dictionaries.components.readouts import recovery

HERE = Path(__file__).parent
COLOURS = {"start": "#bbbbbb", "svd": "#3b5b7a", "all_pieces": "#e0b080", "alive_pieces": "#b5651d"}
SHOWN = (("TMS 5-2", "down"), ("TMS 40-10", "down"), ("TMS 40-10", "up"))


def folder_of(runs: Path, case: str, seed: int) -> Path:
    return runs / f"{case}, seed {seed}".replace(" ", "_")


@torch.no_grad()
def swapped(runs: Path, done: dict) -> dict[str, dict[str, float]]:
    """The way in of every TMS seed against the next seed's weights."""
    found = {}
    for case in CASES:
        seeds = sorted(entry["seed"] for entry in done.values() if entry["case"] == case)
        if len(seeds) < 2 or not case.startswith("TMS"):
            continue
        for seed, other in zip(seeds, seeds[1:] + seeds[:1], strict=True):
            pieces = Components.load(folder_of(runs, case, seed) / "components")
            down = pieces.by_name()["down"]
            weight = load_tensors(folder_of(runs, case, other) / "target.safetensors")[
                "down.weight"
            ]
            match = recovery(down.U, down.V, weight)
            found[f"{case}, pieces {seed}, target {other}"] = match._asdict()
    return found


def in_order(importance: Tensor) -> Tensor:
    """Pieces that matter at all, each under the feature it matters most for."""
    alive = importance[:, importance.max(0).values > 0.1]
    return alive[:, alive.argmax(0).argsort(stable=True)]


def draw(runs: Path, done: dict) -> None:
    figure, axes = plt.subplots(1, 2 + len(SHOWN), figsize=(17, 3.6), layout="constrained")
    rows = [e for e in done.values() if "down" in e["matrices"] and e["case"] in CASES]
    labels = [f"{e['case']}, {e['seed']}" for e in rows]
    for axis, measure in zip(axes[:2], ("mmcs", "ml2r"), strict=True):
        for kind, colour in COLOURS.items():
            values = [e["matrices"]["down"][kind][measure] for e in rows]
            axis.plot(values, range(len(rows)), "o", color=colour, label=kind.replace("_", " "))
        axis.axvline(1.0, color="grey", linewidth=0.5)
        axis.set(title=f"{measure.upper()} of W", yticks=range(len(rows)))
        axis.set_yticklabels(labels if measure == "mmcs" else [], fontsize=7)
        axis.invert_yaxis()
    axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    for axis, (case, name) in zip(axes[2:], SHOWN, strict=True):
        importance = load_tensors(folder_of(runs, case, 0) / "alone.safetensors")[name]
        axis.imshow(in_order(importance), cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axis.set(title=f"{case}, {name}", xlabel="piece", ylabel="feature shown alone")
    figure.savefig(HERE / "spd.png", dpi=100)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    numbers = json.loads(NUMBERS.read_text())
    write_json(HERE / "swapped.json", swapped(Path(sys.argv[1]), numbers))
    draw(Path(sys.argv[1]), numbers)
