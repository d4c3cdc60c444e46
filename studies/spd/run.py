"""Stochastic parameter decomposition on the paper's toy networks, with baselines and controls.

    python studies/spd/run.py RUNS [--cases "TMS 5-2" ...] [--seeds 0 1 2]
    python studies/spd/draw.py RUNS

Trains each case's target, decomposes it, and adds one entry a case and seed to numbers.json
beside this file (what is there already is not done again). RUNS keeps targets and components.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from cases import CASES, Case
from torch import Tensor, nn

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import save_tensors
from unweave.dictionaries.components.components import (
    Components,
    linear_layer,
    start_components,
)
from unweave.dictionaries.components.masked import clean_run, draw_masks, masked_run
from unweave.dictionaries.components.readouts import (
    Recovery,
    alive_components,
    feature_shares,
    recovery,
    svd_pieces,
)
from unweave.progress import Lines
from unweave.subject.memory import keep_freed_memory
from unweave.training.components import learn_components

NUMBERS = Path(__file__).parent / "numbers.json"
HELD_OUT_ROWS, HELD_OUT_SEED = 10_000, 987
ALONE = 0.75  # the value at which one feature is shown to see which pieces it needs


def main(runs: Path, cases: list[str], seeds: list[int]) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in cases:
        for seed in seeds:
            done = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
            key = f"{name}, seed {seed}"
            if key not in done:
                entry = one_run(CASES[name], seed, runs / key.replace(" ", "_"))
                done = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
                write_json(NUMBERS, done | {key: {"case": name, "seed": seed} | entry})
                print(key, json.dumps(entry), flush=True)


def one_run(case: Case, seed: int, folder: Path) -> dict:
    """Target, start, data and masks each have a seed of their own, and so has the held-out data."""
    target = case.target(seed)
    names = case.matrices(target)
    components = start_components(target, dict.fromkeys(names, case.pieces), seed=seed + 100)
    start = {name: match_of(case, target, components, name) for name in names}
    wall, processor = time.monotonic(), time.process_time()
    log = learn_components(
        target,
        components,
        case.draw_for_training,
        seed=seed + 200,
        settings=case.learning(),
        progress=Lines(every=60.0),
    )
    entry = {
        "seconds": round(time.monotonic() - wall),
        "processor_seconds": round(time.process_time() - processor),
        "steps": case.settings.steps,
        "faithfulness": log[-1]["faithfulness"] if log else 0.0,
        "learning": case.learning().model_dump(),
    }
    entry |= measure(case, target, components, folder)
    for name, before in start.items():
        entry["matrices"][name] |= {"start": before} if before else {}
    components.save(folder / "components")
    save_tensors(folder / "target.safetensors", dict(target.state_dict()))
    return entry


@torch.no_grad()
def measure(case: Case, target: nn.Module, components: Components, folder: Path) -> dict:
    """All read-outs, on inputs drawn apart from those that taught."""
    x = case.draw(HELD_OUT_ROWS, torch.Generator().manual_seed(HELD_OUT_SEED))
    clean = clean_run(target, components, x)
    found = components.importances(clean.inputs)
    spread = (clean.output - clean.output.mean(0)).square().sum()
    masks = draw_masks(found, torch.Generator().manual_seed(HELD_OUT_SEED + 1))
    tries = {"fvu_random_masks": masks, "fvu_needed_only": {n: f.value for n, f in found.items()}}
    fvu = {
        name: ((masked_run(target, components, x, m) - clean.output).square().sum() / spread).item()
        for name, m in tries.items()
    }
    alone = ALONE * torch.eye(x.shape[1])
    shown = components.importances(clean_run(target, components, alone).inputs)
    save_tensors(folder / "alone.safetensors", {n: f.value for n, f in shown.items()})
    matrices = {}
    for name in components.by_name():
        alive = alive_components(found[name].value)
        matter = shown[name].value[:, alive] > 0.1
        matrices[name] = {
            "alive": int(alive.sum()),
            "in_use_per_input": (found[name].value > 0.1).sum(1).float().mean().item(),
            "per_feature_alone": matter.sum(1).float().mean().item(),
            **feature_shares(shown[name].value)._asdict(),
        }
        if name not in case.without_features:
            matrices[name] |= {
                "all_pieces": match_of(case, target, components, name),
                "alive_pieces": match_of(case, target, components, name, alive=alive),
                "svd": match_of(case, target, None, name),
            }
    return fvu | {"matrices": matrices}


@torch.no_grad()
def match_of(
    case: Case,
    target: nn.Module,
    components: Components | None,
    name: str,
    *,
    alive: Tensor | None = None,
) -> dict[str, float]:
    """MMCS and ML2R of a matrix's pieces (without components, of its SVD's), if it has features."""
    if name in case.without_features:
        return {}
    weight = linear_layer(target, name).weight
    if components is None:
        U, V = svd_pieces(weight)
    else:
        U, V = components.by_name()[name].U, components.by_name()[name].V
    if name in case.by_output:
        U, V, weight = V, U, weight.T
    found: Recovery = recovery(U, V, weight, features=case.directions(target, name), alive=alive)
    return found._asdict()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    main(given.runs, given.cases, given.seeds)
