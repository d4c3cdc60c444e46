"""The control of a network that knows nothing: the same short recipe on shuffled weights.

A TopK dictionary is fitted to the trained network and to copies whose blocks, head and embedding
are shuffled, all at one place, on the same text, and described and scored alike. Scores that come
out the same say nothing about what training has put there (studies/controls).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.artifact.measurements import Kind, Measurement
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.subject import Subject
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.attribution_maps.randomise import EMBED, shuffled, stages
from unweave.validate.four_numbers import number
from unweave.validate.numbers.collecting import collect_codes
from unweave.validate.numbers.ground import Ground
from unweave.validate.numbers.measure import measure
from unweave.validate.numbers.method import Method
from unweave.validate.numbers.next_token import next_token_score
from unweave.validate.placed import Placed, placed

TRAINED, AGAIN = "trained", "trained-again"
"""The trained network with the settings' seed, and with the next one: what chance alone does."""


class RandomisedSettings(BaseModel):
    """Settings of the control."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shuffles: PositiveInt = 1
    """Shuffled networks."""
    latents: PositiveInt = 512
    """Latents of the short dictionaries."""
    k: PositiveInt = 16
    """Of them active at a place."""
    steps: PositiveInt = 400
    """Steps of training."""
    batch: PositiveInt = 512
    """Vectors in a step."""
    lr: PositiveFloat = 3e-3
    """Learning rate."""
    seed: NonNegativeInt = 0
    """Seed of shuffles and of dictionaries."""


def networks(trained: Subject, settings: RandomisedSettings) -> dict[str, Subject]:
    """The trained network, twice for two seeds, and its shuffled copies, by name."""
    parts = [*stages(trained), EMBED]
    return {TRAINED: trained, AGAIN: trained} | {
        f"shuffled-{seed}": shuffled(trained, parts, seed=settings.seed + 1000 + seed)
        for seed in range(settings.shuffles)
    }


def measure_short(
    ground: Ground,
    name: str,
    place: tuple[tuple[str, ...], tuple[str, ...]],
    settings: RandomisedSettings,
) -> Measurement:
    """Fit, describe and score the short dictionary of one network at a place."""
    if name == AGAIN:
        settings = settings.model_copy(update={"seed": settings.seed + 1})
    part = placed(name, _fitted(ground, place, settings))
    kind: Kind = "dictionary" if name in (TRAINED, AGAIN) else "control"
    note = f"TopK, {settings.latents} latents, {settings.steps} steps; {name} weights"
    found = measure(ground, Method(name, kind, (part,), note))
    extra = {} if not _in_stream(ground, part) else {
        "next_token": number(
            next_token_score(
                ground.subject, part,
                collect_codes(ground.subject, [part], ground.heldout)[name],
                ground.heldout, ground.settings.bootstrap,
            ),
            "z",
        )
    }  # fmt: skip
    return found.model_copy(update={"more": {**found.more, **extra}})


def _in_stream(ground: Ground, part: Placed) -> bool:
    return part.coder.directions().shape[1] == ground.subject.d_model


def _fitted(
    ground: Ground, place: tuple[tuple[str, ...], tuple[str, ...]], settings: RandomisedSettings
) -> Dictionary:
    sites = list(dict.fromkeys(site for side in place for site in side))
    vectors = _vectors(ground.subject, sites, ground.explain)
    reads, writes = (
        tuple(Port(site=site, width=vectors[site].shape[1]) for site in side) for side in place
    )
    spec = DictionarySpec(
        name="short", reads=reads, writes=writes, n_latents=settings.latents,
        activation=TopK(k=min(settings.k, settings.latents)),
    )  # fmt: skip
    dictionary = Dictionary(spec)
    trainee = Trainee(
        {"short": dictionary}, TraineeSettings(lr=settings.lr), steps=settings.steps,
        batch=settings.batch, seed=settings.seed, name="short",
    )  # fmt: skip
    source = ArraySource(vectors, batch=settings.batch, steps=settings.steps, seed=settings.seed)
    first = VectorBatch({site: v[:8192] for site, v in vectors.items()})
    train([trainee], source, begin=first, settings=TrainSettings(log_every=settings.steps))
    return dictionary.eval().requires_grad_(False)


@torch.no_grad()
def _vectors(
    subject: Subject, sites: Sequence[str], rows: Int[Tensor, "rows pos"]
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    for group in rows.split(8):
        run = subject.run(group, capture=list(sites), logits=False).sites
        for site in sites:
            found[site].append(run[site][:, 1:].flatten(2).flatten(0, 1).float())
    return {site: torch.cat(parts) for site, parts in found.items()}
