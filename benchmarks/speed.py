"""Time the steps of all contestants of a workload, turn by turn in one run.

A turn lets each contestant make a few steps, one after the other, and measures the roofs once.
A ratio is taken within a turn, so that what else the machine does falls on both sides of it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.crew import HALF, Member, absent, crew
from benchmarks.machine import Roofline
from benchmarks.workloads import Workload

WARM = 3
BURST_SECONDS = 0.6
OURS, OURS_FLOAT32 = "unweave", "unweave-float32"


def race(
    workload: Workload,
    vectors: Path,
    environments: Path | None,
    *,
    turns: int,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict:
    """One workload's numbers."""
    field = [name for name in workload.field if not only or name in only]
    missing = absent(field, environments)
    roofline = Roofline(workload.batch, workload.task().width, workload.latents)
    with crew(field, environments, workload.task(), vectors, workload.batch) as members:
        bursts = {name: _burst(member) for name, member in members.items()}
        times: dict[str, list[dict[str, list[float]]]] = {name: [] for name in members}
        for turn in range(turns):
            for name, member in members.items():
                times[name].append(member.ask("steps", n=bursts[name]))
            roofline.measure()
            say(f"turn {turn + 1} of {turns}")
        scores = {name: member.ask("score") for name, member in members.items()}
    roofs = roofline.rates()
    rows = {name: _row(found, workload, roofs, scores[name]["l0"]) for name, found in times.items()}
    return {
        "workload": {k: v for k, v in workload._asdict().items() if k != "field"},
        "turns": turns,
        "absent": missing,
        "roofs_gflops": {name: round(rate / 1e9, 1) for name, rate in roofs.items()},
        "contestants": rows,
        "ratios": ratios(times, OURS),
        "ratios_equal_numbers": {
            name: found
            for name in times
            if not name.startswith(OURS)
            for found in [ratios(times, OURS if name in HALF else OURS_FLOAT32).get(name)]
            if found is not None
        },
    }


def ratios(times: dict[str, list[dict[str, list[float]]]], ours: str) -> dict[str, dict]:
    """CPU time of each other contestant over ours, turn by turn: median, lowest, highest."""
    if ours not in times:
        return {}
    mine = [median(turn["cpu"]) for turn in times[ours]]
    found = {}
    for name, turns in times.items():
        if name.startswith(OURS):
            continue
        each = [median(turn["cpu"]) / own for turn, own in zip(turns, mine, strict=True)]
        found[name] = _spread(each, 3)
    return found


def _burst(member: Member) -> int:
    """Warm it up and say how many of its steps fill a turn."""
    step = min(member.ask("steps", n=WARM)["cpu"][1:])
    return max(1, min(20, round(BURST_SECONDS / step)))


def _row(found: list[dict], workload: Workload, roofs: dict[str, float], l0: float) -> dict:
    cpu = [median(turn["cpu"]) for turn in found]
    wall = [median(turn["wall"]) for turn in found]
    best = min(min(turn["cpu"]) for turn in found)
    encoder = 2.0 * workload.task().width * workload.latents * workload.batch
    return {
        "cpu_ms": _spread([1e3 * c for c in cpu], 2),
        "cpu_ms_best": round(1e3 * best, 2),
        "wall_ms": _spread([1e3 * w for w in wall], 2),
        "vectors_per_cpu_second": round(workload.batch / median(cpu)),
        "l0": round(l0, 2),
        # Both the roof and the time are the best of the run: a busy neighbour slows either.
        "share_of_encoder_roof": {
            numbers: round(encoder / roofs[f"encoder_{numbers}"] / best, 4)
            for numbers in ("bfloat16", "float32")
        },
        "share_of_nominal_roof": {
            numbers: round(encoder / roofs[f"nominal_{numbers}"] / best, 4)
            for numbers in ("bfloat16", "float32")
        },
    }


def _spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }
