"""Race unweave against the installed trainers; `make bench` runs this.

    python -m benchmarks.bench [--environments DIR] [--work DIR] [--parts speed memory quality]
                               [--only topk-4608 ...] [--contestants unweave sparsify ...]

DIR/sparsify, DIR/saelens and DIR/dictionary_learning are the peers' environments (environments.py
makes them); whoever has none is left out and named. What is measured replaces that workload's entry
in results.json and leaves the others as they were; with --contestants or --out nothing committed
is touched unless asked for.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import memory, quality, speed
from benchmarks.machine import bandwidth, describe_machine
from benchmarks.tables import memory_table, quality_table, speed_table
from benchmarks.vectors import vectors
from benchmarks.workloads import MEMORY, QUALITY, SPEED
from unweave.artifact.atomic import write_json
from unweave.errors import UserError

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PARTS = {"speed": SPEED, "memory": MEMORY, "quality": QUALITY}
TABLES = {"speed": speed_table, "memory": memory_table, "quality": quality_table}


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "bench")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", nargs="+", default=[], help="workloads; all if not given")
    parser.add_argument("--contestants", nargs="+", default=[], help="not for memory")
    parser.add_argument("--turns", type=int, default=7, help="repeats of a timed burst")
    parser.add_argument("--out", type=Path, help="where the numbers go; see above")
    asked = parser.parse_args()
    known = {name for part in asked.parts for name in PARTS[part]}
    if unknown := sorted(set(asked.only) - known):
        parser.error(f"no workload {', '.join(unknown)} in these parts; there are {sorted(known)}")
    return asked


def main() -> None:
    """Run the parts, print the tables, keep the numbers."""
    asked, console = arguments(), Console(width=None if sys.stdout.isatty() else 150)
    torch.set_num_threads(1)
    out = asked.out or (None if asked.contestants else RESULTS)
    results = json.loads(out.read_text()) if out is not None and out.exists() else {}
    machine = describe_machine()
    machine["copy_gb_per_s"] = round(bandwidth() / 1e9, 1)
    for part in asked.parts:
        for name in PARTS[part]:
            if asked.only and name not in asked.only:
                continue
            found = run(part, name, asked, console) | {"machine": machine}
            for missing in found["absent"]:
                console.print(f"{missing} is left out: it has no environment")
            console.print(TABLES[part](name, found))
            results.setdefault(part, {})[name] = found
            if out is not None:
                write_json(out, results)


def run(part: str, name: str, asked: argparse.Namespace, console: Console) -> dict:
    """One workload of one part."""
    workload = PARTS[part][name]
    data = vectors(getattr(workload, "vectors", "planted"), asked.work)
    with console.status(f"{part}, {name}") as status:

        def say(word: str) -> None:
            status.update(f"{part}, {name}: {word}")
            if not console.is_terminal:
                print(f"{part}, {name}: {word}", file=sys.stderr, flush=True)

        if part == "quality":
            return quality.race(workload, data, asked.environments, asked.contestants, say)
        if part == "memory":
            return memory.measure(workload, data, asked.environments)
        return speed.race(
            workload, data, asked.environments, turns=asked.turns, only=asked.contestants, say=say
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
