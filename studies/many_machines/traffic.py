"""What two processes send one another in a step, and what sharing a step costs on this machine.

    torchrun --nproc-per-node 2 studies/many_machines/traffic.py

Vectors of the peers' workload, d = 576, k = 32, random first weights. Bytes are those that leave a
process (`Group.sent`), the mean over the measured steps. CPU seconds are a process's own, the least
of the measured steps; `one` is the same step by one process that has all rows and all latents.
Results are added to those that are there.
"""

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.batches import ArraySource
from unweave.training.parallel.grid import Grid, grid_of, launched, together
from unweave.training.parallel.sources import VectorShares
from unweave.training.parallel.trainee import SharedTrainee
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.validate.worlds.peers_workload import WIDTH, peers_workload

K, WARM, MEASURED = 32, 3, 6
POINTS = [(4096, 4608), (4096, 16_384), (4096, 65_536), (512, 16_384), (512, 65_536)]
"""Vectors a step and latents."""
HERE = Path(__file__).parent
ACTIVATIONS: dict[str, Callable[[], Any]] = {
    "topk": lambda: TopK(k=K),
    "batchtopk": lambda: BatchTopK(k=K),
    "jumprelu": lambda: JumpReLU(threshold=1.0, bandwidth=2.0),
}


def stepped(trainee: Trainee, source: Any) -> tuple[float, float]:
    """Bytes sent and CPU seconds of a step."""
    grid = trainee.grid if isinstance(trainee, SharedTrainee) else None
    seconds, before = [], 0
    for step in range(WARM + MEASURED):
        batch = source.at(step)
        if step == WARM:
            before = grid.sent if grid else 0
        start = time.process_time()
        trainee.step(batch)
        seconds.append(time.process_time() - start)
    return ((grid.sent - before) / MEASURED if grid else 0.0), min(seconds[WARM:])


def measured(kind: str, latents: int, grids: dict[str, Grid], source: ArraySource) -> dict:
    spec = autoencoder("s", WIDTH, latents, ACTIVATIONS[kind]())
    settings = TraineeSettings(lr=1e-3)
    found: dict[str, Any] = {"activation": kind, "batch": source.batch, "n_latents": latents}
    how = {"steps": 10_000, "batch": source.batch, "seed": 7}
    for name, grid in grids.items():
        shared = SharedTrainee({"s": Dictionary(spec)}, settings, grid=grid, **how)
        shares = VectorShares(source, grid.rows)
        shared.begin(shares.first())
        sent, seconds = stepped(shared, shares)
        found[name] = {"bytes": round(sent), "cpu_seconds": round(seconds, 4)}
    grid = grids["rows"]
    if grid.first:
        one = Trainee({"s": Dictionary(spec)}, settings, **how)
        one.begin(source.at(0))
        found["one"] = {"cpu_seconds": round(stepped(one, source)[1], 4)}
    grid.everyone.wait()
    found["dense_gradients"] = 2 * latents * WIDTH * 4
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, nargs="+", default=[*range(len(POINTS))])
    parser.add_argument("--activations", nargs="+", default=["topk", "batchtopk"])
    parser.add_argument("--out", type=Path, default=HERE / "traffic.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = max(batch for batch, _ in POINTS) * (WARM + MEASURED)
    vectors = {"s": peers_workload(seed=0).draw(rows, seed=1)[0]}
    with together() as grid:
        grids = {"rows": grid, "latents": grid_of(launched(), launched(), grid.device)}
        found = json.loads(given.out.read_text()) if given.out.is_file() else []
        for (batch, latents), kind in product([POINTS[i] for i in given.points], given.activations):
            source = ArraySource(vectors, batch=batch)
            found.append(measured(kind, latents, grids, source))
            if grid.first:
                print(json.dumps(found[-1]), flush=True)
        if grid.first:
            given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
