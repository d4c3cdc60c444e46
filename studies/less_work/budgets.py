"""Equal shares of a budget against shares by gain, on four planted worlds of unequal difficulty.

    python studies/less_work/budgets.py [--steps 2400] [--seeds 0 1]

Appends to budgets.jsonl beside this script: held-out FVU and steps of each world, both ways.
"""

import argparse
import json
from pathlib import Path

import torch

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.training.batches import ArraySource
from unweave.training.budgets import Budgeted, BudgetSettings, train_on_budget
from unweave.training.dead import AuxK, DeadLatents
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.validate.worlds.features import PlantedSettings, planted_world

HERE, BATCH, K, LATENTS, WIDTH = Path(__file__).parent, 256, 8, 512, 64
FEATURES = {"32 features": 32, "96 features": 96, "256 features": 256, "512 features": 512}
WAYS = {"equal": BudgetSettings(equal=1.0), "by gain": BudgetSettings(equal=0.4)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        line for seed in asked.seeds for way in WAYS for line in trained(way, seed, asked.steps)
    ]
    with (HERE / "budgets.jsonl").open("a") as file:
        file.writelines(json.dumps({"budget": asked.steps} | line) + "\n" for line in lines)


def trained(way: str, seed: int, steps: int) -> list[dict]:
    runs, heldout = [], {}
    for place, (name, features) in enumerate(FEATURES.items()):
        world = planted_world(
            PlantedSettings(d=WIDTH, n_features=features, mean_active=6.0, firing="zipf",
                            noise_share=0.01),
            seed=10 * seed + place,
        )  # fmt: skip
        x, heldout[name] = world.draw(60_000, seed=1)[0], world.draw(8192, seed=2)[0]
        torch.manual_seed(seed)
        dictionary = Dictionary(autoencoder("s", WIDTH, LATENTS, TopK(k=K), name=name))
        settings = TraineeSettings(lr=3e-3, dead=DeadLatents(auxk=AuxK(k=K)))
        trainee = Trainee({"d": dictionary}, settings, steps=steps // len(FEATURES), batch=BATCH,
                          seed=100 + seed, name=name)  # fmt: skip
        runs.append(Budgeted(trainee, ArraySource({"s": x}, batch=BATCH, seed=seed)))
    train_on_budget(runs, steps, settings=WAYS[way])
    lines = []
    for run in runs:
        dictionary, name = run.trainee.dictionaries["d"], run.trainee.name
        code, y = dictionary.encode(heldout[name]), heldout[name]
        fvu = fidelity_of(fidelity_sums(y, dictionary.decode(code), code)).fvu
        lines.append({"way": way, "seed": seed, "world": name, "steps": run.trainee.step_index,
                      "fvu": fvu})  # fmt: skip
        print(json.dumps(lines[-1]), flush=True)
    return lines


if __name__ == "__main__":
    main()
