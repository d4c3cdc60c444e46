"""Do latents carry variables from prompt to prompt? SmolLM2, and programs of known variables.

    OMP_NUM_THREADS=1 python studies/interventions/iia.py programs
    OMP_NUM_THREADS=1 python studies/interventions/iia.py smollm2 DICTIONARIES STORE
    OMP_NUM_THREADS=1 python studies/interventions/iia.py sizes DICTIONARIES
    OMP_NUM_THREADS=1 python studies/interventions/iia.py layers

DICTIONARIES is a folder with `dictionaries/NAME` trained at blocks.14.resid_post, STORE any folder
of one's own, where what has been done is kept. Writes iia.json beside this file after every cell.
"""

import json
import sys
import time
from pathlib import Path

import torch

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.formats import load_foreign
from unweave.errors import UserError
from unweave.subject import Subject, load_subject
from unweave.validate.interventions.iia import (
    Halves,
    IIASettings,
    answered,
    count,
    halved,
    interchange_accuracy,
)
from unweave.validate.interventions.iia_protocol import Variable, iia_on
from unweave.validate.interventions.interchange import (
    changes,
    everything,
    exchange_of,
    most_effective,
    of_latents,
)
from unweave.validate.interventions.pair_tasks import our_tasks
from unweave.validate.interventions.pairs import fitting
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.protocol import Bench, Refused
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.interchange import (
    exchange_variable,
    true_latents,
    variable_pairs,
    written_at,
)
from unweave.validate.worlds.programs.library import LIBRARY, program

HERE = Path(__file__).parent
HELD = ("country_capital.country", "ioi_name.mention", "ioi_position.repeated")
"""Variables and places that block 14 holds, by the stage `layers`."""
SITE, SIZES = "blocks.14.resid_post", (8, 32, 128)
LAYERS = (2, 6, 10, 14, 18, 22, 26)


def keep(found: dict, out: Path) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(one)}" for key, one in found.items())
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def programs(found: dict, out: Path) -> None:
    """Every variable of every program that 60 pairs can be had for, exchanged alone; and others at
    the same site and places; and what is learned in the dictionary of all true directions.
    """
    for name in LIBRARY:
        compiled = compile_program(program(name), settings=CompileSettings(rotation=1))
        for variable in [v for v in compiled.variables if v.used]:
            key = f"programs/{name}/{variable.name}"
            if key in found:
                continue
            try:
                pairs = variable_pairs(
                    compiled, variable, 60, length=compiled.program.indices.length, seed=0
                )
            except UserError as error:
                found[key] = {"refused": str(error)}
                keep(found, out)
                continue
            site = written_at(variable)
            some = exchange_of(compiled.subject, site, pairs)
            cell = {
                "pairs": len(pairs), "site": site, "everything": _hits(compiled, site, some, None),
                "alone": {
                    one.name: _hits(compiled, site, some, one)
                    for one in compiled.variables
                    if one.at(site)
                },
            }  # fmt: skip
            true = Placed("true", true_latents(compiled, site), (site,), (site,))
            try:
                all_ways = interchange_accuracy(
                    compiled.subject, true, pairs, IIASettings(chosen=8)
                )
                cell |= {"of_site": all_ways.of_site, "of_coder": all_ways.of_coder,
                         "exchanged": all_ways.exchanged}  # fmt: skip
            except Refused as why:
                cell["refused"] = str(why)
            found[key] = cell
            keep(found, out)
            print(key, cell["alone"][variable.name], flush=True)


def _hits(compiled, site, some, variable) -> int:
    move = everything if variable is None else exchange_variable(compiled, variable)
    return count(compiled.subject, site, some, move).hits


def smollm2(found: dict, out: Path, folder: Path, store: Path) -> None:
    """The protocol on every dictionary, one variable after the other."""
    subject = load_subject("smollm2-135m", dtype="bfloat16")
    variables = {one.name: one for one in _variables(subject)}
    for name in HELD:
        for path in sorted((folder / "dictionaries").iterdir()):
            key = f"smollm2/{name}/{path.name}"
            if key in found:
                continue
            start = time.time()
            one = placed(path.name, next(iter(load_foreign(path).values())))
            outcome = iia_on(Bench(subject, one, store), [variables[name]], IIASettings(chosen=8))
            found[key] = outcome.model_dump(mode="json")
            keep(found, out)
            print(key, round(time.time() - start), flush=True)


def sizes(found: dict, out: Path, folder: Path) -> None:
    """How the latents of most effect do beside as many coordinates, random latents and random
    directions, by their number. The same pairs and halves as in `smollm2`.
    """
    subject = load_subject("smollm2-135m", dtype="bfloat16")
    variables = {one.name: one for one in _variables(subject)}
    for name in HELD:
        pairs, halves = variables[name].pairs, None
        for path in sorted((folder / "dictionaries").iterdir()):
            key = f"sizes/{name}/{path.name}"
            if key in found:
                continue
            one = placed(path.name, next(iter(load_foreign(path).values())))
            if halves is None:
                kept = answered(subject, pairs, IIASettings())
                halves = halved(subject, SITE, [pairs[at] for at in kept], seed=0)
            found[key] = _by_size(subject, one, halves)
            keep(found, out)
            print(key, found[key], flush=True)


def _by_size(subject: Subject, one: Placed, halves: Halves) -> dict:
    train, test = halves
    x = torch.cat([train.base, train.source])
    coders = {
        "latents": one.coder, "twin": random_twin(one, x, x, seed=0).coder,
        "neurons": coordinates(x.shape[1]),
    }  # fmt: skip
    weights = {
        (name, k): (coder, most_effective(subject, SITE, train, coder, k))
        for name, coder in coders.items()
        for k in SIZES
    }
    differ = (changes(one.coder, train) != 0).any(0).nonzero()[:, 0]
    random = torch.Generator().manual_seed(2)
    for k in SIZES:
        drawn = differ[torch.randperm(len(differ), generator=random)[:k]]
        mask = torch.zeros(one.coder.n_latents).index_fill(0, drawn, 1.0)
        weights["random_latents", k] = one.coder, mask
    return {
        f"{name}_{k}": count(subject, SITE, test, of_latents(coder, weight))
        for (name, k), (coder, weight) in weights.items()
    }


def layers(found: dict, out: Path) -> None:
    """The whole vector exchanged, at every fourth block: where is a variable?"""
    subject = load_subject("smollm2-135m", dtype="bfloat16")
    for variable in _variables(subject):
        key = f"layers/{variable.name}"
        if key in found:
            continue
        kept = answered(subject, variable.pairs, IIASettings())
        pairs = [variable.pairs[at] for at in kept[:64]]
        cell = {"pairs": len(pairs), "answered": len(kept), "drawn": len(variable.pairs)}
        for layer in LAYERS:
            site = f"blocks.{layer}.resid_post"
            cell[site] = count(subject, site, exchange_of(subject, site, pairs), everything).hits
        found[key] = cell
        keep(found, out)
        print(key, cell, flush=True)


def _variables(subject: Subject) -> list[Variable]:
    tasks = our_tasks(IIASettings().drawn, seed=0)
    made = [(task.name, fitting(subject, task.pairs)) for task in tasks]
    return [Variable(name, found.pairs, found.unfit) for name, found in made]


def main(stage: str, *folders: str) -> None:
    torch.set_num_threads(1)
    out = HERE / "iia.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    if stage == "programs":
        programs(found, out)
    elif stage == "smollm2":
        smollm2(found, out, *map(Path, folders))
    elif stage == "sizes":
        sizes(found, out, *map(Path, folders))
    else:
        layers(found, out)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
