"""Whether dictionaries notice the number format of the pass that made their training vectors.

Transcoders of a few MLPs from the same text, seeds and order of batches; only the pass, or how its
vectors are held, differs. All are measured on held-out vectors of the float32 network.
"""

import argparse

import torch
from run import CONTEXT, load
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.subject import Subject, token_rows
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.recipes.ask import Ask
from unweave.training.recipes.catalog import recipe
from unweave.training.trainee import Trainee
from unweave.training.trainer import TrainSettings, train

ARMS = {
    "float32": ("float32", "float32"),
    "float32, held as bfloat16": ("float32", "bfloat16"),
    "bfloat16": ("bfloat16", "subject"),
}
TOKENS, HELDOUT, BATCH, EPOCHS, K = 24_576, 8_192, 1024, 3, 32
Vectors = dict[str, Tensor]


def layers_of(subject: Subject) -> list[int]:
    return [2, 10] if subject.n_layers > 20 else list(range(0, subject.n_layers, 2))


def harvested(subject: Subject, rows: Tensor, sites: list[str], store: str) -> Vectors:
    settings = HarvestSettings(window_tokens=rows.numel(), store=store)
    with Workers(1) as workers:
        window = Harvester(
            subject, rows, sites, workers=workers, seed=0, settings=settings, shuffled=True
        ).window(0)
    return window.vectors


def unexplained(found: Tensor, true: Tensor) -> float:
    """Share of the true vectors' variance that the found ones miss."""
    found, true = found.float(), true.float()
    return float((found - true).square().sum() / (true - true.mean(0)).square().sum())


def fitted(x: str, y: str, vectors: Vectors, width: int, seed: int) -> Dictionary:
    built = recipe("topk-short")(
        Ask(
            reads=(Port(site=x, width=width),), writes=(Port(site=y, width=width),),
            n_latents=min(2 * width, 1152), k=min(K, width // 4), penalty=None, lr=None, later=(),
        )
    )  # fmt: skip
    rows = len(vectors[x])
    source = ArraySource(vectors, batch=BATCH, steps=EPOCHS * (rows // BATCH), seed=seed)
    trainee = Trainee(
        {name: Dictionary(spec) for name, spec in built.specs.items()},
        built.settings.model_copy(update={"dead": DeadLatents(auxk=None), "k_from": None}),
        steps=source.steps, batch=BATCH, seed=100 + seed,
    )  # fmt: skip
    first = VectorBatch({site: v[:8192] for site, v in vectors.items()})
    train([trainee], source, begin=first, settings=TrainSettings(log_every=10_000))
    return trainee.dictionaries["dictionary"]


@torch.no_grad()
def heldout_fvu(dictionary: Dictionary, x: Tensor, y: Tensor) -> float:
    code = dictionary.encode(x)
    return fidelity_of(fidelity_sums(y, dictionary.decode(code), code)).fvu


def quality(options: argparse.Namespace) -> dict:
    """Held-out FVU by arm, layer and seed, and how far vectors are from float32's by format."""
    exact = load(options.subject, "float32")
    text = token_rows(
        exact, options.text, tokens=TOKENS + 2 * HELDOUT, context=CONTEXT, heldout_share=0.2
    )
    train_rows, held_rows = text.train[: TOKENS // CONTEXT], text.heldout[: HELDOUT // CONTEXT]
    pairs = {i: (f"blocks.{i}.mlp.in", f"blocks.{i}.mlp.out") for i in layers_of(exact)}
    sites = [site for pair in pairs.values() for site in pair]
    held = harvested(exact, held_rows, sites, "float32")
    found: dict[str, dict] = {}
    for arm, (number, store) in ARMS.items():
        subject = exact if number == "float32" else load(options.subject, number)
        vectors = harvested(subject, train_rows, sites, store)
        found[arm] = {
            f"layer {i}": [
                round(
                    heldout_fvu(
                        fitted(x, y, {x: vectors[x], y: vectors[y]}, exact.d_model, seed),
                        held[x], held[y],
                    ), 5,
                )
                for seed in range(3)
            ]
            for i, (x, y) in pairs.items()
        }  # fmt: skip
        print(arm, found[arm], flush=True)
    few = held_rows[:8]
    exactly = harvested(exact, few, sites, "float32")
    by_format = {
        number: harvested(load(options.subject, number), few, sites, "float32")
        for number in ("bfloat16", "int8")
    }
    own = {
        number: {site: unexplained(vectors[site], exactly[site]) for site in sites}
        for number, vectors in by_format.items()
    }
    return {
        "tokens": train_rows.numel(), "epochs": EPOCHS, "held-out FVU": found,
        "how far the vectors themselves are from float32's (FVU)": own,
    }  # fmt: skip
