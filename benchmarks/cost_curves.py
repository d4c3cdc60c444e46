"""What a step costs as a dictionary grows: time and memory along each axis, with fitted exponents.

    python -m benchmarks.cost_curves [--axes latents k batch width layers] [--turns 2]

From the point n = 8192, d = 576, k = 32, batch 4096, one layer, one axis is moved at a time. Every
point runs alone in a process (`cost_point.py`); the axes are walked through several times and the
least time of a point is kept. Cost is fitted as a power law in the axis, by least squares in
logarithms, with a 95 % interval of the exponent; since every cost has a part that does not grow,
the exponent of the upper half is given too. Writes cost_curves.json and cost_curves.png.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import describe_machine
from unweave.artifact.atomic import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "cost_curves.json"
BASE = {"latents": 8192, "width": 576, "k": 32, "batch": 4096, "layers": 1}
AXES = {
    "latents": [2**e for e in range(10, 18)],
    "k": [8, 16, 32, 64, 128, 256],
    "batch": [512, 1024, 2048, 4096, 8192, 16_384],
    "width": [144, 288, 576, 1152, 2304],
    "layers": [1, 2, 4, 8],
}
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}


def measure(point: dict[str, int]) -> dict[str, float]:
    """One point, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cost_point", json.dumps(point)]
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=HERE.parent, env=os.environ | single, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{point}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def walk(axes: list[str], turns: int) -> Iterator[dict[str, list[dict[str, float]]]]:
    """Every point of the axes, turn by turn: the least of the times, the most of the memory."""
    found: dict[str, list[dict[str, float]]] = {axis: [] for axis in axes}
    for turn in range(turns):
        for axis in axes:
            for place, value in enumerate(AXES[axis]):
                now = {"at": value} | measure(BASE | {axis: value})
                if turn:
                    before = found[axis][place]
                    now |= {key: min(now[key], before[key]) for key in ("cpu_s", "wall_s")}
                    now["grown_bytes"] = max(now["grown_bytes"], before["grown_bytes"])
                    found[axis][place] = now
                else:
                    found[axis].append(now)
                seconds, megabytes = now["cpu_s"], now["grown_bytes"] / 1e6
                print(f"{axis} {value}: {seconds:.4f} s, {megabytes:.1f} MB", flush=True)
        yield found


def power_law(x: list[float], y: list[float]) -> dict[str, float]:
    """y = factor x^exponent: least squares in logarithms, 95 % interval of the exponent."""
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    n = len(logs)
    mean_x, mean_y = (sum(values) / n for values in zip(*logs, strict=True))
    spread = sum((a - mean_x) ** 2 for a, _ in logs)
    exponent = sum((a - mean_x) * (b - mean_y) for a, b in logs) / spread
    left = sum((b - mean_y - exponent * (a - mean_x)) ** 2 for a, b in logs)
    found = {"exponent": exponent, "factor": math.exp(mean_y - exponent * mean_x)}
    if n > 2:
        reach = _T95[n - 2] * math.sqrt(left / (n - 2) / spread)
        found |= {"low": exponent - reach, "high": exponent + reach}
    return found


def fits(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The exponents of one axis, over all of it and over its upper half."""
    upper = rows[-max(3, (len(rows) + 1) // 2) :]
    found = {}
    for name, part in (("all", rows), ("upper half", upper)):
        at = [row["at"] for row in part]
        for cost in ("cpu_s", "grown_bytes"):
            law = power_law(at, [row[cost] for row in part])
            found[f"{cost}, {name}"] = {key: round(v, 9) for key, v in law.items()}
    return found


def draw(curves: dict[str, list[dict[str, float]]], laws: dict, path: Path) -> None:
    """Time and memory along every axis, on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        2, len(curves), figsize=(3 * len(curves), 5), layout="constrained", squeeze=False
    )
    units = (("cpu_s", 1.0, "CPU seconds a step"), ("grown_bytes", 1e-6, "peak MB"))
    for column, (axis, rows) in enumerate(curves.items()):
        at = [row["at"] for row in rows]
        for panel, (cost, unit, label) in zip(panels[:, column], units, strict=True):
            panel.plot(at, [row[cost] * unit for row in rows], "o-", color="#3b5b7a", markersize=4)
            if cost == "grown_bytes":
                needed = [row["needed_bytes"] * unit for row in rows]
                panel.plot(at, needed, ":", color="#b5651d", label="weights, optimiser, batch")
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xlabel(axis)
            law = laws[axis][f"{cost}, upper half"]
            panel.set_title(f"upper half: {axis}^{law['exponent']:.2f}", fontsize=9)
            if column == 0:
                panel.set_ylabel(label)
    panels[1, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=70)


def table(curves: dict[str, list[dict[str, float]]], laws: dict) -> str:
    """The exponents as the docs show them."""
    lines = [
        "| axis | from, to | seconds a step | exponent | upper half | peak MB | upper half |",
        "|---|---|---|---|---|---|---|",
    ]
    for axis in (axis for axis in AXES if axis in curves):
        first, last, law = curves[axis][0], curves[axis][-1], laws[axis]
        every = law["cpu_s, all"]
        lines.append(
            f"| {axis} | {first['at']:,} to {last['at']:,} "
            f"| {first['cpu_s']:.3f} to {last['cpu_s']:.2f} "
            f"| {every['exponent']:.2f} ({every['low']:.2f} to {every['high']:.2f}) "
            f"| {law['cpu_s, upper half']['exponent']:.2f} "
            f"| {first['grown_bytes'] / 1e6:.0f} to {last['grown_bytes'] / 1e6:,.0f} "
            f"| {law['grown_bytes, upper half']['exponent']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, fit, draw, keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    before = json.loads(asked.out.read_text())["curves"] if asked.out.exists() else {}
    machine = describe_machine()
    for walked in walk(asked.axes, asked.turns):
        curves = before | walked
        laws = {axis: fits(rows) for axis, rows in curves.items()}
        write_json(asked.out, {"machine": machine, "base": BASE, "curves": curves, "laws": laws})
        draw(curves, laws, asked.out.with_suffix(".png"))
    print(table(curves, laws))


if __name__ == "__main__":
    main()
