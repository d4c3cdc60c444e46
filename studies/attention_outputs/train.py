"""Dictionaries on concatenated heads: several starts, one pass of the subject.

    OMP_NUM_THREADS=1 python studies/attention_outputs/train.py SUBJECT FOLDER

SUBJECT is wren, wren-shuffled or smollm2. Writes FOLDER/SUBJECT/ARM-blocks.N.attn.z/ and goes on
where it was cut off. Arms: topk-short started at random or in the data's active subspace, as it is
and with nothing done for dead latents (`left`).
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.progress import watching
from unweave.subject import Subject, TokenRows, load_subject, token_rows
from unweave.training.batches import WindowSource
from unweave.training.dead import DeadLatents
from unweave.training.recipes.ask import Ask
from unweave.training.recipes.catalog import recipe
from unweave.training.trainee import Trainee
from unweave.training.trainer import TrainSettings, train
from unweave.validate.attribution_maps.randomise import shuffled, stages

CURED = ("random", "subspace")
LEFT = ("random-left", "subspace-left")


class Plan(NamedTuple):
    """What is trained at one subject."""

    subject: str
    text: str
    tokens: int
    layers: tuple[int, ...]
    latents: int
    k: int
    lr: float
    arms: tuple[str, ...]


PLANS = {
    "wren": Plan("wren", "self", 250_000, (0, 1, 2, 3, 4), 1024, 16, 3e-3, CURED + LEFT),
    "wren-shuffled": Plan(
        "wren", "self", 100_000, (0, 1, 2, 3, 4), 1024, 16, 3e-3, ("subspace",)
    ),
    "smollm2": Plan(
        "smollm2-135m", "wiki", 150_000, (11, 14, 18), 2304, 32, 2e-3, CURED
    ),
}  # fmt: skip


def loaded(name: str, dtype: str = "auto") -> Subject:
    """The subject of a plan; `-shuffled` has the weights of every block shuffled."""
    subject = load_subject(PLANS[name].subject, dtype=dtype)
    return shuffled(subject, stages(subject), seed=0) if name.endswith("-shuffled") else subject


def text_of(name: str) -> TokenRows:
    """Rows that are trained on and held out; a shuffled subject reads what the trained one does."""
    plan = PLANS[name]
    subject = load_subject(plan.subject)
    return token_rows(subject, plan.text, tokens=plan.tokens, context=128, seed=0)


def trainee(plan: Plan, arm: str, layer: int, port: Port, source: WindowSource) -> Trainee:
    ask = Ask(reads=(port,), writes=(port,), n_latents=plan.latents, k=plan.k, lr=plan.lr)
    built = recipe("topk-short")(ask)
    start = built.settings.start.model_copy(update={"decoder": arm.removesuffix("-left")})
    changes = {"start": start}
    if arm.endswith("-left"):
        changes["dead"] = DeadLatents(auxk=None)
    return Trainee(
        {name: Dictionary(spec) for name, spec in built.specs.items()},
        built.settings.model_copy(update=changes),
        steps=source.steps, batch=source.batch, seed=1, name=f"{arm}-{port.site}",
    )  # fmt: skip


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    plan, subject, text = PLANS[name], loaded(name), text_of(name)
    sites = [f"blocks.{layer}.attn.z" for layer in plan.layers]
    width = subject.n_heads * subject.d_head
    progress = watching()
    with Workers(1) as workers:
        harvester = Harvester(
            subject, text.train, sites, workers=workers, seed=0,
            settings=HarvestSettings(store="subject"), shuffled=True,
        )  # fmt: skip
        source = WindowSource(harvester, batch=512, epochs=1)
        trainees = [
            trainee(plan, arm, layer, Port(site=f"blocks.{layer}.attn.z", width=width), source)
            for arm in plan.arms
            for layer in plan.layers
        ]
        train(
            trainees, source, begin=source.first(), settings=TrainSettings(checkpoint_seconds=60),
            folder=folder / name / "work", workers=workers, progress=progress,
        )  # fmt: skip
    for one in trainees:
        save_dictionary(one.dictionaries["dictionary"], folder / name / one.name)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in PLANS:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]))
