"""Fail when we have become slower than we were, told by ratios and never by times.

    python -m benchmarks.guard [--environments DIR] [--tolerance 0.25] [--only topk-4608 ...]

A short race is run again and each contestant's time over ours is held against the committed
results.json: a ratio that fell by more than the tolerance is named and the exit status is 1. The
plain loop in torch needs no environment, so that there is always something to compare with. Ratios
are compared by the best step of each side, which a busy machine disturbs least.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import speed
from benchmarks.machine import seconds_of
from benchmarks.vectors import vectors
from benchmarks.workloads import SPEED
from unweave.errors import UserError

HERE = Path(__file__).parent
TOLERANCE = 0.25


class Fell(NamedTuple):
    """A ratio that is worse than it was."""

    workload: str
    contestant: str
    committed: float
    now: float

    def __str__(self) -> str:
        return (
            f"{self.workload}: {self.contestant} takes {self.now:.2f} times our time, "
            f"{self.committed:.2f} in the committed results"
        )


def best_ratios(found: dict) -> dict[str, float]:
    """Each contestant's best step over our best step, out of one workload's numbers."""
    rows = found["contestants"]
    ours = rows[speed.OURS]["cpu_ms_best"]
    return {
        name: row["cpu_ms_best"] / ours
        for name, row in rows.items()
        if not name.startswith(speed.OURS)
    }


def fallen(committed: dict[str, dict], fresh: dict[str, dict], tolerance: float) -> list[Fell]:
    """Every ratio of both runs that fell by more than the tolerance; workloads by name."""
    found = []
    for workload, now in fresh.items():
        before = best_ratios(committed[workload])
        for contestant, ratio in best_ratios(now).items():
            was = before.get(contestant)
            if was is not None and ratio < (1 - tolerance) * was:
                found.append(Fell(workload, contestant, was, ratio))
    return found


def interleaved_ratio(ours: Callable[[], object], other: Callable[[], object], turns: int) -> float:
    """CPU time of the other over ours, each the least of several turns: for jobs of one process."""
    for job in (ours, other):
        job()
    best = [float("inf"), float("inf")]
    for _ in range(turns):
        best = [min(least, seconds_of(job)) for least, job in zip(best, (ours, other), strict=True)]
    return best[1] / best[0]


def main() -> None:
    """Race, compare, say what fell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path)
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "bench")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE)
    parser.add_argument("--only", nargs="+", default=["topk-4608"])
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    committed = json.loads((HERE / "results.json").read_text())["speed"]
    if unknown := sorted(set(asked.only) - set(committed)):
        raise UserError(f"results.json has no workload {', '.join(unknown)}: run make bench first")
    data = vectors("planted", asked.work)
    fresh = {
        name: speed.race(SPEED[name], data, asked.environments, turns=asked.turns)
        for name in asked.only
    }
    worse = fallen(committed, fresh, asked.tolerance)
    for line in worse:
        print(line)
    compared = sum(len(best_ratios(now)) for now in fresh.values())
    print(f"{compared} ratios compared, {len(worse)} fell by more than {asked.tolerance:.0%}")
    sys.exit(bool(worse))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
