"""How long each contestant takes to the fidelity that the best peer ends with.

All train on the same batches in the same order, turn by turn. After each turn the held-out vectors
are scored while the clocks stand still. Time to target is read off the straight line between the
two checkpoints around it; it counts everything from the first batch on, ours with its start.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.crew import absent, crew
from benchmarks.workloads import Quality

OURS = "unweave"
"""Also with a share behind it: a run shorter than the peers', planned to be so."""


def race(
    quality: Quality,
    vectors: Path,
    environments: Path | None,
    only: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> dict:
    """The curves of all contestants, the target and everybody's seconds to it."""
    turn = quality.steps // quality.checkpoints
    curves: dict[str, list[dict[str, float]]] = {}
    task = quality.task()
    field = [name for name in quality.field if not only or name in only]
    with crew(field, environments, task, vectors, quality.batch) as members:
        curves = {name: [] for name in members}
        for done in range(turn, quality.steps + 1, turn):
            for name, member in members.items():
                if done > member.steps:
                    continue
                spent = member.ask("steps", n=turn)
                before = curves[name][-1] if curves[name] else {"cpu_s": 0.0, "wall_s": 0.0}
                now = {
                    "step": done,
                    "cpu_s": round(before["cpu_s"] + sum(spent["cpu"]), 3),
                    "wall_s": round(before["wall_s"] + sum(spent["wall"]), 3),
                }
                now |= {k: round(v, 5) for k, v in member.ask("score").items()}
                curves[name].append(now)
            say(f"{done} of {quality.steps} steps")
    settings = {k: v for k, v in quality._asdict().items() if k != "field"}
    missing = absent(field, environments)
    return {"workload": settings, "absent": missing, "curves": curves} | summary(curves)


def summary(curves: dict[str, list[dict[str, float]]]) -> dict:
    """The best peer's final FVU and how many CPU seconds everybody takes to reach it."""
    peers = {name: curve for name, curve in curves.items() if not name.startswith(OURS)}
    if not peers:
        return {}
    best = min(peers, key=lambda name: peers[name][-1]["fvu"])
    target, theirs = peers[best][-1]["fvu"], peers[best][-1]["cpu_s"]
    seconds = {name: seconds_to(curve, target) for name, curve in curves.items()}
    shares = {
        name: round(spent / theirs, 4)
        for name, spent in seconds.items()
        if name.startswith(OURS) and spent is not None
    }
    return {
        "best_peer": best,
        "target_fvu": target,
        "best_peers_cpu_s": theirs,
        "cpu_s_to_target": seconds,
        "share_of_best_peers_time": shares,
    }


def seconds_to(curve: list[dict[str, float]], target: float) -> float | None:
    """CPU seconds until a curve first reaches a held-out FVU; None where it never does."""
    before = None
    for point in curve:
        if point["fvu"] <= target:
            if before is None or before["fvu"] == point["fvu"]:
                return point["cpu_s"]
            share = (before["fvu"] - target) / (before["fvu"] - point["fvu"])
            return round(before["cpu_s"] + share * (point["cpu_s"] - before["cpu_s"]), 3)
        before = point
    return None
