"""One contestant of the race, run in its own environment: train on the vectors, say how it went.

    python contestants.py NAME WORK VECTORS BATCH LR SEED

WORK holds vectors.npy (training rows, then the held-out ones) and gets NAME.npz: what the
dictionary makes of the held-out rows, how often each latent fires there, its decoder rows and the
seconds. The contestants themselves are those of `benchmarks/contestants`.
"""

import contextlib
import io
import json
import resource
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.contestants.contract import Contestant, Task

HELDOUT, WIDTH, LATENTS, K = 16_384, 576, 4_608, 32


class Batches:
    """The training rows in their order; a list to whoever asks for its length."""

    def __init__(self, path: Path, vectors: int, batch: int) -> None:
        self._rows = np.load(path, mmap_mode="r")
        self.steps, self.batch, self.extra = vectors // batch, batch, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for step in range(self.steps + self.extra):
            start = step % self.steps * self.batch
            yield torch.from_numpy(np.array(self._rows[start : start + self.batch]))

    def first(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self._rows[: self.batch]))

    def heldout(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self._rows[-HELDOUT:]))


def contestant(name: str, data: Batches, lr: float, seed: int) -> Contestant:
    task = Task("topk", LATENTS, data.steps, k=K, width=WIDTH, lr=lr, seed=seed)
    module, builder, options = {
        "unweave": ("ours", "unweave", {}),
        "hand-tuned": ("hand_tuned", "hand_tuned", {}),
        "sparsify": ("sparsify", "sparsify", {}),
        "sparsify-signum": ("sparsify", "sparsify", {"signum": True}),
        "saelens": ("saelens", "saelens", {}),
        "dictionary_learning": ("dictionary_learning", "dictionary_learning", {}),
    }[name]
    build = getattr(import_module(f"benchmarks.contestants.{module}"), builder)
    return build(data, task, **options)


def main(name: str, work: Path, vectors: int, batch: int, lr: float, seed: int) -> None:
    torch.set_num_threads(1)
    data = Batches(work / "vectors.npy", vectors, batch)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        fit, apply, directions = contestant(name.split("@")[0], data, lr, seed)
        cpu, wall = time.process_time(), time.perf_counter()
        fit()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        heldout, fired = data.heldout(), torch.zeros(LATENTS, dtype=torch.long)
        outputs = []
        with torch.no_grad():
            for x in heldout.split(4096):
                output, counts = apply(x)
                outputs.append(output)
                fired += counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {"cpu_s": cpu, "wall_s": wall, "peak_rss_gib": peak}
    np.savez(
        work / f"{name}.npz",
        output=torch.cat(outputs).numpy(),
        fired=fired.numpy(),
        directions=directions().numpy(),
        seconds=json.dumps(seconds),
    )


if __name__ == "__main__":
    name, work, vectors, batch, lr, seed = sys.argv[1:]
    main(name, Path(work), int(vectors), int(batch), float(lr), int(seed))
