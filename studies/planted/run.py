"""Which parts find planted dictionaries again: every part on every world, five seeds.

    OMP_NUM_THREADS=1 python studies/planted/run.py [STAGE ...]

Appends one JSON line per run to runs.jsonl and skips what is there already; `report.py` makes the
tables and the plot. Stages: `tune` (learning rates, on a world of its own), `main` (all parts where
features are Zipf-distributed, paired and hierarchical at once; and penalties at several L0 on a
plain world), `copies` (L1 and Lp at two rates and two lengths of training), `width` (with fewer
and more latents), `slow` (NMF), `apart` (each property of the features alone).
"""

import json
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from parts import CLASSICAL, LATENTS, PENALISED, TRAINED, Trained, told

from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.batches import ArraySource
from unweave.training.dead import DeadLatents
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.fidelity import measure_fidelity
from unweave.validate.recovery import measure_recovery
from unweave.validate.worlds.features import PlantedSettings, PlantedWorld, planted_world

HERE = Path(__file__).parent
RUNS = HERE / "runs.jsonl"
STEPS, BATCH, TRAIN_ROWS, CLASSICAL_ROWS, TEST_ROWS = 1000, 256, 262_144, 16_384, 8192
LOWER, RATE, HIGHER, HIGHEST = 3e-3, 1e-2, 3e-2, 1e-1
AS_TOPK = ("batchtopk", "abstopk", "matryoshka batchtopk")
"""Trained at the rate that suits TopK best."""
SEEDS = range(5)
K = 4
PLAIN = PlantedSettings(d=64, n_features=128, mean_active=K, noise_share=0.02)
ZIPF = {"firing": "zipf", "zipf_exponent": 0.7}
PAIRS = {"group_size": 2, "correlation": 0.8}
FAMILIES = {"n_parents": 16, "children": 2}
WORLDS = {
    "plain": PLAIN,
    "all": PLAIN.model_copy(update=ZIPF | PAIRS | FAMILIES),
    "zipf": PLAIN.model_copy(update=ZIPF),
    "pairs": PLAIN.model_copy(update=PAIRS),
    "families": PLAIN.model_copy(update=FAMILIES),
}
APART = ("zipf", "pairs", "families")
FRONTIER_L0 = (1.5, 2.5, 4, 6, 9)
FRONTIER = ("relu + L1", "relu + Lp 0.6", "relu + log", "relu + tanh")
COPIES, LONGER = ("relu + L1", "relu + Lp 0.6"), 4 * STEPS
WIDTHS = (128, 512)
SLOW = ("NMF",)
STAGES = ("tune", "main", "copies", "width", "slow", "apart")


def vectors(world_name: str, seed: int) -> tuple[PlantedWorld, torch.Tensor]:
    """A world and its training vectors; kept, as runs of one seed follow one another."""
    key = (world_name, seed)
    if key not in _KEPT:
        _KEPT.clear()
        world = planted_world(WORLDS[world_name], seed=seed)
        _KEPT[key] = world, world.draw(TRAIN_ROWS, seed=1000 + seed)[0]
    return _KEPT[key]


_KEPT: dict[tuple[str, int], tuple[PlantedWorld, torch.Tensor]] = {}


def fit(part: Trained, x: torch.Tensor, cell: dict[str, Any]) -> tuple[Dictionary, float]:
    k, latents, seed, steps = cell["k"], cell["latents"], cell["seed"], cell["steps"]
    spec = autoencoder("planted", x.shape[1], latents, part.activation(round(k)), **part.spec)
    dictionary = Dictionary(spec)
    # A penalty decides how many features are learned: nothing revives what it lets die.
    dead = DeadLatents() if part.form is None else DeadLatents(auxk=None)
    settings = TraineeSettings(penalties=part.penalties(k), lr=cell["rate"], dead=dead)
    trainee = Trainee({"d": dictionary}, settings, steps=steps, batch=BATCH, seed=2000 + seed)
    source = ArraySource({"planted": x}, batch=BATCH, steps=steps, seed=4000 + seed)
    train([trainee], source, settings=TrainSettings(log_every=steps))
    factors = trainee.steering["d"].log_factor
    weight = part.weight * float(factors[0].exp()) if len(factors) else 0.0
    return dictionary, weight


def untrained(x: torch.Tensor, seed: int) -> Dictionary:
    """The start of the TopK dictionary."""
    dictionary = Dictionary(
        autoencoder("planted", x.shape[1], LATENTS, TRAINED["topk"].activation(K))
    )
    trainee = Trainee({"d": dictionary}, TraineeSettings(), steps=1, batch=BATCH, seed=2000 + seed)
    trainee.begin(ArraySource({"planted": x}, batch=BATCH, steps=1).at(0))
    return dictionary.eval()


def measure(coder: Coder, world: PlantedWorld, seed: int) -> dict[str, Any]:
    x, truth = world.draw(TEST_ROWS, seed=3000 + seed)
    fidelity = measure_fidelity(coder, x, x)._asdict()
    recovery = measure_recovery(coder, world.directions, x, truth, parents=world.parents)
    fidelity["alive_share"] = fidelity.pop("alive")
    found = fidelity | recovery._asdict()
    return {k: plain(v) if isinstance(v, float) else v for k, v in found.items()}


def plain(value: float) -> float | None:
    """Five decimals; JSON has no nan."""
    return None if math.isnan(value) else round(value, 5)


def build(name: str, world: PlantedWorld, x: torch.Tensor, cell: dict[str, Any]) -> Any:
    seed, k = cell["seed"], cell["k"]
    if name in TRAINED:
        return fit(TRAINED[name], x, cell)
    if name == "control: untrained":
        return untrained(x, seed), 0.0
    if name == "ceiling: the truth + OMP":
        return told(world.directions, x, k), 0.0
    return CLASSICAL[name](x[:CLASSICAL_ROWS], k, 2000 + seed), 0.0


def cells(stage: str, rates: dict[str, float]) -> list[dict[str, Any]]:
    def cell(world: str, part: str, seed: int, k: float = K, latents: int = LATENTS) -> dict:
        rate = rates.get(part) if part in TRAINED else None
        kind = "apart" if world in APART else stage
        given = dict(world=world, part=part, seed=seed, k=k, latents=latents, rate=rate)
        return {"stage": kind, **given, "steps": STEPS}

    untaught = [n for n in CLASSICAL if n not in SLOW]
    names = [*TRAINED, *untaught, "control: untrained", "ceiling: the truth + OMP"]
    match stage:
        case "tune":
            tried = [(p, r) for p in TRAINED if p not in AS_TOPK for r in (RATE, HIGHER)]
            lower = [*PENALISED, "jumprelu + L0", "jumprelu + tanh (2025)", "gated + L1"]
            tried += [(p, LOWER) for p in lower] + [("relu + L1", HIGHEST)]
            return [cell("plain", p, 99) | {"rate": r} for p, r in tried]
        case "main":
            penalised = [("plain", p, s, k) for s in SEEDS for k in FRONTIER_L0 for p in FRONTIER]
            return [cell("all", p, s) for s in SEEDS for p in names] + [
                cell(*one) | {"stage": "frontier"} for one in penalised
            ]
        case "copies":
            how = [(RATE, STEPS), (RATE, LONGER), (HIGHER, STEPS), (HIGHER, LONGER)]
            return [
                cell("plain", p, s) | {"rate": r, "steps": n}
                for s in SEEDS
                for p in COPIES
                for r, n in how
            ]
        case "width":
            pairs = [(p, n) for p in FRONTIER if p != "relu + log" for n in WIDTHS]
            return [cell("plain", p, s, K, n) for s in SEEDS for p, n in pairs]
        case "apart":
            return [cell(w, p, s) for s in SEEDS for w in APART for p in names]
        case "slow":
            return [cell("all", p, s) for s in SEEDS for p in SLOW]
    sys.exit(__doc__)


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    names = ("stage", "world", "part", "seed", "k", "latents", "rate", "steps")
    return tuple(line[name] for name in names)


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def chosen_rates() -> dict[str, float]:
    """Of the rates tried, the one with the lowest FVU among those that came near their L0."""
    best: dict[str, tuple[float, float]] = {}
    for line in (line for line in done() if line["stage"] == "tune"):
        score = line["fvu"] + (abs(line["l0"] - K) > 0.5 * K)
        if line["part"] not in best or score < best[line["part"]][0]:
            best[line["part"]] = score, line["rate"]
    rates = {part: rate for part, (_, rate) in best.items()}
    return rates | {part: rates["topk"] for part in AS_TOPK if "topk" in rates}


def main(stages: Sequence[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # scikit-learn says so where ICA or NMF has not settled
    for stage in stages:
        have = {key_of(line) for line in done()}
        # Seed by seed, so that a run cut short leaves fewer seeds of everything.
        for cell in sorted(cells(stage, chosen_rates()), key=lambda cell: cell["seed"]):
            if key_of(cell) in have:
                continue
            world, x = vectors(cell["world"], cell["seed"])
            begun = time.perf_counter()
            coder, weight = build(cell["part"], world, x, cell)
            seconds = round(time.perf_counter() - begun, 2)
            line = cell | {"weight": round(weight, 4), "seconds": seconds}
            line |= measure(coder, world, cell["seed"])
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(stage, cell["world"], cell["part"], cell["seed"], seconds, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or STAGES)
