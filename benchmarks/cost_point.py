"""One point of a cost curve, alone in its process: CPU seconds of a step and the memory it grew by.

python -m benchmarks.cost_point POINT      (POINT is JSON; `cost_curves.py` starts it)
"""

import json
import sys
import time
from statistics import median

import torch

from benchmarks.contestants.contract import Task
from benchmarks.contestants.ours import prepare
from benchmarks.memory import needed
from benchmarks.worker import resident, resident_before
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.subject import keep_freed_memory
from unweave.training.batches import VectorBatch
from unweave.training.trainee import Trainee, TraineeSettings

SECONDS, LEAST_STEPS, WARM = 2.0, 3, 2
RUN = 100_000


def main() -> None:
    """Measure and print one line of JSON."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    keep_freed_memory()
    base = resident_before("ours")
    batch, sites = asked["batch"], [f"site{i}" for i in range(asked["layers"])]
    drawn = torch.randn(batch, asked["width"], generator=torch.Generator().manual_seed(0))
    vectors = VectorBatch(dict.fromkeys(sites, drawn))
    task = Task(
        "topk", asked["latents"], RUN, k=asked["k"], width=asked["width"], settled=True
    )  # fmt: skip
    trainees = []
    for site in sites:
        dictionary, settings = _at(site, *prepare(task))
        trainees.append(Trainee({site: dictionary}, settings, steps=RUN, batch=batch, name=site))
        trainees[-1].begin(vectors)
    cpu, wall = _time(trainees, vectors)
    least = sum(needed(task.latents, task.width, 0) for _ in sites) + drawn.nbytes
    print(
        json.dumps(
            {
                "cpu_s": min(cpu),
                "cpu_s_median": median(cpu),
                "wall_s": min(wall),
                "grown_bytes": resident("VmHWM") - base,
                "needed_bytes": least,
                "steps": len(cpu),
            }
        )
    )


def _at(
    site: str, dictionary: Dictionary, settings: TraineeSettings
) -> tuple[Dictionary, TraineeSettings]:
    port = (Port(site=site, width=dictionary.spec.d_in),)
    spec = dictionary.spec.model_copy(update={"reads": port, "writes": port})
    return Dictionary(spec), settings


def _time(trainees: list[Trainee], vectors: VectorBatch) -> tuple[list[float], list[float]]:
    cpu: list[float] = []
    wall: list[float] = []
    for step in range(10_000):
        before = time.process_time(), time.perf_counter()
        for trainee in trainees:
            trainee.step(vectors)
        if step >= WARM:
            cpu.append(time.process_time() - before[0])
            wall.append(time.perf_counter() - before[1])
        if len(cpu) >= LEAST_STEPS and sum(cpu) > SECONDS:
            break
    return cpu, wall


if __name__ == "__main__":
    main()
