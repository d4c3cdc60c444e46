"""Put the runs of run.py together: numbers.json and features.png.

python studies/smollm2/collect.py RUN.json [RUN.json ...]
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from unweave.artifact.atomic import write_json

HERE = Path(__file__).parent


def main(files: list[Path]) -> None:
    """Collect and draw."""
    runs = {file.stem: json.loads(file.read_text()) for file in files}
    write_json(HERE / "numbers.json", runs)
    draw(runs, HERE / "features.png")


def draw(runs: dict, path: Path) -> None:
    """What replacing each group of parts costs, propagated, a panel a run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 3.8), layout="constrained")
    for (name, run), panel in zip(runs.items(), [axes] if len(runs) == 1 else axes, strict=True):
        rows = {n: s for n, s in run["scores"].items() if isinstance(s, dict) and "interval" in s}
        names = list(rows)[::-1]
        values = [rows[row]["ce_increase"] for row in names]
        ends = [rows[row]["interval"] for row in names]
        error = [
            [max(0.0, v - low) for v, (low, _) in zip(values, ends, strict=True)],
            [max(0.0, high - v) for v, (_, high) in zip(values, ends, strict=True)],
        ]
        panel.barh(names, values, xerr=error, color="#3b5b7a", height=0.6, ecolor="#999999")
        for at, value in enumerate(values):
            panel.annotate(f"  {value:.2f}", (max(ends[at][1], value), at), va="center", fontsize=8)
        panel.set(xlabel="CE increase, nats/token", title=name, xlim=(0, 1.15 * max(values)))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(file) for file in sys.argv[1:]])
