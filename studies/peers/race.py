"""Race unweave's TopK against the installed trainers on planted vectors: quality and time, one run.

    python studies/peers/race.py --environments DIR --work DIR [--vectors 1024000] [--only NAME ...]

DIR/sparsify, DIR/saelens and DIR/dictionary_learning are virtual environments (see README.md);
whoever has none is left out and named. The hand-tuned script runs where HAND_TUNED names its file.
All get the same vectors in the same order, the same width, k and batch, one thread, and a seed that
is not the data's. A name may carry a learning rate after an @ (`sparsify@0.003`). Writes
results.json beside this script and prints the table.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from unweave.validate.worlds.peers_workload import peers_workload

HERE = Path(__file__).parent
WORLD, DATA, LEARNER, HELDOUT = 5, 6, 1234, 16_384
FIELD = (
    "unweave", "hand-tuned", "sparsify", "sparsify@0.003", "sparsify-signum",
    "dictionary_learning", "saelens",
)  # fmt: skip
HOMES = {"sparsify-signum": "sparsify"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--vectors", type=int, default=1_024_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--only", nargs="*", default=FIELD)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    world = peers_workload(seed=WORLD)
    write_vectors(world, asked.work / "vectors.npy", asked.vectors)
    rows = [row for name in asked.only if (row := run(name, asked, world)) is not None]
    settings = {"vectors": asked.vectors, "batch": asked.batch, "latents": 4608, "k": 32,
                "world_seed": WORLD, "data_seed": DATA, "learner_seed": LEARNER}  # fmt: skip
    (HERE / "results.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    print(table(rows))


def write_vectors(world, path: Path, vectors: int) -> None:
    total = vectors + HELDOUT
    if path.exists() and len(np.load(path, mmap_mode="r")) == total:
        return
    out = np.lib.format.open_memmap(path, "w+", np.float32, (total, world.d))
    for start in range(0, total, 65_536):
        stop = min(start + 65_536, total)
        out[start:stop] = world.draw(stop - start, seed=DATA, start=start)[0].numpy()
    out.flush()


def run(name: str, asked, world) -> dict | None:
    kind, _, lr = name.partition("@")
    home = asked.environments / HOMES.get(kind, kind) / "bin" / "python"
    python = Path(sys.executable) if kind in ("unweave", "hand-tuned") else home
    if not python.exists() or (kind == "hand-tuned" and "HAND_TUNED" not in os.environ):
        print(f"{name}: no environment at {home.parent.parent}")
        return None
    command = [str(python), str(HERE / "contestants.py"), name, str(asked.work)]
    command += [str(asked.vectors), str(asked.batch), lr or "0", str(LEARNER)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "BS": str(asked.batch),
    }
    subprocess.run(command, check=True, env=environment)
    found = np.load(asked.work / f"{name}.npz")
    row = {"name": name, **json.loads(str(found["seconds"])), **score(found, asked.work, world)}
    print(json.dumps(row), flush=True)
    return row


def score(found, work: Path, world) -> dict:
    x = torch.from_numpy(np.array(np.load(work / "vectors.npy", mmap_mode="r")[-HELDOUT:]))
    error = torch.from_numpy(found["output"]) - x
    fired = torch.from_numpy(found["fired"])
    learned = torch.nn.functional.normalize(torch.from_numpy(found["directions"]), dim=1)
    cosine = world.directions @ learned.T
    best = cosine.max(1).values
    return {
        "fvu": float(error.square().sum() / (x - x.mean(0)).square().sum()),
        "l0": float(fired.sum()) / HELDOUT,
        "dead": float((fired == 0).double().mean()),
        "mmcs": float(best.mean()),
        "found": float((best > 0.9).double().mean()),
    }


def table(rows: list[dict]) -> str:
    lines = ["| | CPU s | FVU | L0 | dead | MMCS | truth found |", "|---|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda r: r["fvu"]):
        lines.append(
            f"| {row['name']} | {row['cpu_s']:.0f} | {row['fvu']:.3f} | {row['l0']:.1f} "
            f"| {row['dead']:.3f} | {row['mmcs']:.3f} | {row['found']:.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
