"""How many latents a crosscoder falsely calls one network's own, where we know whose they are.

    python studies/crosscoder/planted.py

Two planted networks (`validate.worlds.pairs`), and a control in which both hold everything alike;
L1-of-norms and BatchTopK at equal L0, and L1 at a higher one, where it is more accurate; five
seeds. Writes planted.json beside this file. An
exclusive latent (Delta within 0.1 of an end) is false when the other network holds its feature at
a fifth of the strength or more in the rows in which the latent is active.
"""

import argparse
import json
from pathlib import Path

import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.crosscoder import beside, crosscoder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.initial import Start
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.training.batches import ArraySource
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train
from unweave.validate.diffing import Diff, diff_sites
from unweave.validate.worlds.pairs import KINDS, PairedRows, PairedWorld, PairSettings

HERE = Path(__file__).parent
LATENTS, BATCH = 128, 256
L0 = {"l1": 4, "batchtopk": 4, "l1_denser": 10}
"""Latents per row on average; L1 is steered towards it."""
BAR, FALSE = 0.7, 0.2
"""Cosine from which a latent stands for a feature; true sharing from which exclusive is false."""
WORLDS = {
    "pair": PairSettings(),
    "identical": PairSettings(shared=84, faint=0, loose=0, only_a=0, only_b=0, turn=0.0, noise=0.0),
}


def trained(kind: str, world: PairedWorld, *, seed: int, steps: int) -> Dictionary:
    """A crosscoder of one kind; its seeds are not the data's."""
    l1 = kind != "batchtopk"
    activation = ReLU() if l1 else BatchTopK(k=L0[kind])
    sizes = {"a": world.settings.d, "b": world.settings.d}
    dictionary = Dictionary(crosscoder(sizes, LATENTS, activation))
    penalties = (Penalty(form=L1(), weight=1.0, target_l0=L0[kind]),) if l1 else ()
    settings = TraineeSettings(lr=3e-3, penalties=penalties, start=Start(decoder_norm=0.5))
    vectors = world.draw(160 * BATCH, seed=seed + 100).vectors
    source = ArraySource(vectors, batch=BATCH, steps=steps, seed=seed + 3)
    train([Trainee({"x": dictionary}, settings, steps=steps, batch=BATCH, seed=seed + 7)], source)
    return dictionary


def measured(dictionary: Dictionary, world: PairedWorld, rows: PairedRows) -> dict:
    """Fidelity, classes, and how many exclusive latents are false, before and after scaling."""
    x = beside(dictionary, rows.vectors)
    code = dictionary.encode(x)
    fidelity = fidelity_of(fidelity_sums(x, dictionary.decode(code), code))
    diff = diff_sites(dictionary, rows.vectors)
    found = {"l0": fidelity.l0, "fvu": fidelity.fvu, "alive": fidelity.alive, **diff.counts}
    told = [told_apart(dictionary, world, rows, diff, network) for network in ("a", "b")]
    for key in told[0]:
        found[key] = sum(one[key] for one in told)
    return found


def told_apart(
    dictionary: Dictionary, world: PairedWorld, rows: PairedRows, diff: Diff, network: str
) -> dict[str, int]:
    """Of one network's exclusive latents: how many are false, and what latent scaling says."""
    place = ("a", "b").index(network)
    exclusive = diff.classes.only_first if network == "a" else diff.classes.only_second
    exclusive = exclusive & (diff.scaling.fired > 0)
    part = dictionary.decoder().detach().split(world.settings.d, dim=1)[place]
    feature, cosine = world.nearest(part, network)
    code = dictionary.encode(beside(dictionary, rows.vectors))
    shared = world.truly_shared(feature, network, code, rows)
    known = exclusive & (cosine > BAR)
    false, true, genuine = known & (shared >= FALSE), known & (shared < FALSE), diff.scaling.genuine
    own = world.kind == KINDS.index(f"only_{network}")
    return {
        "exclusive": int(exclusive.sum()),
        "false": int(false.sum()),
        "false_by_scaling": int((false & genuine).sum()),
        "true": int(true.sum()),
        "true_by_scaling": int((true & genuine).sum()),
        "unmatched": int((exclusive & ~known).sum()),
        "planted": int(own.sum()),
        "planted_found": len(feature[true & own[feature]].unique()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--kinds", nargs="+", default=list(L0))
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS))
    parser.add_argument("--out", type=Path, default=HERE / "planted.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in asked.worlds:
        for seed in range(asked.seeds):
            world = PairedWorld(WORLDS[name], seed=seed)
            rows = world.draw(8192, seed=seed + 200)
            for kind in asked.kinds:
                dictionary = trained(kind, world, seed=seed, steps=asked.steps)
                found = {k: round(v, 4) for k, v in measured(dictionary, world, rows).items()}
                runs.append({"world": name, "kind": kind, "seed": seed, **found})
                print(runs[-1], flush=True)
    asked.out.write_text(json.dumps({"steps": asked.steps, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
