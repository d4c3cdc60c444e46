"""What ten kinds of dictionary find in worlds whose truth is known.

    OMP_NUM_THREADS=1 python studies/worlds/run.py [STAGE ...]

Appends one JSON line per run to runs.jsonl and skips what is there already; `report.py` makes the
tables and the plot. Stages: `main` (every dictionary in every world), `narrow` (fewer latents than
features, where hedging is expected), `networks` (what is in the trained networks themselves, and in
untrained and memorising ones).
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import networks
import torch
from kinds import KINDS, TRAINED, build

from unweave.validate.truth.measure import measure_world
from unweave.validate.worlds.catalogue import WORLDS, load_world
from unweave.validate.worlds.world import World

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
SEEDS = range(5)
COSTLY = ("compressed", "tms, 100-20", "modular, trained")
"""Worlds with three seeds, like the languages; all others have five."""
SLOW, SLOW_WORLDS = "NMF", ("planted, pairs", "tms, 40-10", "language, nested", "modular, hand-set")
"""Run with the first seed, in worlds that are small."""
NARROW_WORLDS = ("planted, pairs", "planted, families")
NARROW = (16, 64, 128)
NARROW_KINDS = (*(n for n in TRAINED if n != "jumprelu + L0"), "k-means")
Line = dict[str, Any]


def world_of(name: str, seed: int) -> World:
    """A language's network is trained once; every other world is another one with every seed."""
    key = name, 0 if name.startswith("language") else seed
    if key not in _KEPT:
        for old in [one for one in _KEPT if not one[0].startswith("language")]:
            del _KEPT[old]
        _KEPT[key] = load_world(*key[:1], seed=key[1])
    return _KEPT[key]


_KEPT: dict[tuple[str, int], World] = {}


def most_seeds(world: str) -> int:
    return 3 if world in COSTLY or world.startswith("language") else 5


def cells(stage: str) -> list[Line]:
    found = []
    for seed in SEEDS:
        if stage == "main":
            found += [
                {"stage": stage, "world": world, "kind": kind, "seed": seed, "latents": None}
                for world in WORLDS
                for kind in KINDS
                if seed < most_seeds(world)
                and (kind != SLOW or (seed == 0 and world in SLOW_WORLDS))
            ]
        elif stage == "narrow":
            found += [
                {"stage": stage, "world": world, "kind": kind, "seed": seed, "latents": latents}
                for world in NARROW_WORLDS
                for latents in NARROW
                for kind in NARROW_KINDS
            ]
        elif stage == "networks":
            found += [
                {"stage": stage, "world": name, "kind": "network", "seed": seed, "latents": None}
                for name in networks.ABOUT
                if seed < (1 if name.startswith("language") else 3)
            ]
        else:
            sys.exit(__doc__)
    return found


def measured(cell: Line) -> Line | None:
    seed = cell["seed"]
    if cell["stage"] == "networks":
        return {"numbers": networks.ABOUT[cell["world"]](seed), "refused": {}}
    world = world_of(cell["world"], seed)
    latents = cell["latents"] or 2 * world.features
    coder = build(cell["kind"], world, latents, 2000 + seed)
    if coder is None:
        return None
    report = measure_world(coder, world, seed=seed)
    numbers = {name: round(value, 5) for name, value in report.flat().items() if value is not None}
    return {"numbers": numbers, "refused": report.refused}


def key_of(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("stage", "world", "kind", "seed", "latents"))


def done() -> list[Line]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def main(stages: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # scikit-learn says so where ICA or NMF has not settled
    have = {key_of(line) for line in done()}
    todo = [cell for stage in stages for cell in cells(stage) if key_of(cell) not in have]
    # Seed by seed, so that a run cut short leaves fewer seeds of everything.
    for cell in sorted(todo, key=lambda cell: cell["seed"]):
        begun = time.process_time()
        found = measured(cell)
        if found is None:
            continue
        line = cell | {"seconds": round(time.process_time() - begun, 2)} | found
        with RUNS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["main", "narrow", "networks"])
