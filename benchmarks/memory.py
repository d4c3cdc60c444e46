"""How much memory training takes beyond what cannot be avoided.

    share = (peak resident memory - resident memory once everything is imported)
            / (weights + Adam's two moments + one batch of vectors)

Each contestant has a process of its own. Vectors come by plain reads into one array, so that no
page of a file counts. Before the base is read, torch has multiplied once in each precision and run
backward, and the kernel's mark of the highest use is reset.
"""

from pathlib import Path

from benchmarks.crew import absent, crew
from benchmarks.workloads import Workload

STEPS = 4
FLOAT = 4


def needed(latents: int, width: int, batch: int) -> int:
    """Bytes of weights, optimiser and one batch, all in float32."""
    weights = 2 * latents * width + latents + width
    return FLOAT * (3 * weights + batch * width)


def measure(workload: Workload, vectors: Path, environments: Path | None) -> dict:
    """Everybody's peak, alone on the machine one after the other."""
    task = workload.task()
    least = needed(workload.latents, task.width, workload.batch)
    rows = {}
    for name in workload.field:
        with crew([name], environments, task, vectors, workload.batch) as members:
            for member in members.values():
                member.ask("steps", n=STEPS)
                found = member.ask("memory")
                grown = found["peak"] - found["base"]
                rows[name] = {
                    "base_mb": round(found["base"] / 1e6, 1),
                    "grown_mb": round(grown / 1e6, 1),
                    "share": round(grown / least, 3),
                }
    settings = {k: v for k, v in workload._asdict().items() if k != "field"}
    missing = absent(workload.field, environments)
    return {
        "workload": settings, "absent": missing, "needed_mb": round(least / 1e6, 1),
        "contestants": rows,
    }  # fmt: skip
