"""Autoencoders of the stream after every block: fitted each alone, then in the running network.

End to end with e2e+ds (Braun et al. 2024): KL(original || spliced) and the error of the streams
that come after, over a random half of the autoencoders in a share of the steps, so that features
are those that predictions need whoever else is in place.
"""

from pathlib import Path

from jaxtyping import Int
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor

from unweave.activations.window import Harvester
from unweave.activations.workers import Workers
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.initial import Start
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.batches import TokenSource, WindowSource
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train


class AutoencoderSettings(BaseModel):
    """Sizes of the autoencoders and how long they are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    latents: PositiveInt = 8
    """Latents of a layer, as a multiple of d_model."""
    k: PositiveInt = 32
    """How many of them are active."""
    local_tokens: PositiveInt = 300_000
    """Tokens on which each is fitted alone."""
    batch: PositiveInt = 512
    """Vectors of a step then."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate then."""
    tokens: NonNegativeInt = 150_000
    """Tokens on which they are trained in the running network."""
    rows: PositiveInt = 8
    """Rows of a step then."""
    tuned_lr: PositiveFloat = 1e-3
    """Peak learning rate then."""
    stream: NonNegativeFloat = 0.5
    """Weight of the later streams' error beside the KL then."""


def train_autoencoders(
    subject: Subject,
    tokens: Int[Tensor, "rows pos"],
    *,
    workers: Workers,
    seed: int,
    settings: AutoencoderSettings | None = None,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> list[Dictionary]:
    """One TopK autoencoder of the stream after each block, in order, ready to be measured.

    With `folder`, checkpoints are kept there and a run that was cut off goes on.
    """
    settings = settings or AutoencoderSettings()
    sites = [f"blocks.{layer}.resid_post" for layer in range(subject.n_layers)]
    width = subject.d_model
    specs = [
        autoencoder(site, width, settings.latents * width, TopK(k=settings.k), name=f"L{i}.stream")
        for i, site in enumerate(sites)
    ]
    made = {spec.name: Dictionary(spec) for spec in specs}
    _fit_alone(subject, made, tokens, sites, workers, seed, settings, folder, progress)
    _fit_together(subject, made, tokens, sites, seed, settings, folder, progress)
    return [dictionary.eval() for dictionary in made.values()]


def _fit_alone(
    subject: Subject,
    made: dict[str, Dictionary],
    tokens: Tensor,
    sites: list[str],
    workers: Workers,
    seed: int,
    settings: AutoencoderSettings,
    folder: Path | None,
    progress: Progress,
) -> None:
    rows = tokens[: max(1, settings.local_tokens // tokens.shape[1])]
    harvester = Harvester(subject, rows, sites, workers=workers, seed=seed)
    batch = min(settings.batch, harvester.vectors_in(0) // 4)
    source = WindowSource(harvester, batch=batch)
    how = TraineeSettings(lr=settings.lr, start=Start(decoder="data"))
    trainees = [
        Trainee({name: one}, how, steps=source.steps, batch=batch, seed=seed + i, name=name)
        for i, (name, one) in enumerate(made.items())
    ]
    where = None if folder is None else folder / "alone"
    train(trainees, source, begin=source.first(), folder=where, workers=workers, progress=progress)


def _fit_together(
    subject: Subject,
    made: dict[str, Dictionary],
    tokens: Tensor,
    sites: list[str],
    seed: int,
    settings: AutoencoderSettings,
    folder: Path | None,
    progress: Progress,
) -> None:
    steps = settings.tokens // (settings.rows * tokens.shape[1])
    if not steps:
        return
    source = TokenSource(
        subject, tokens, rows=settings.rows, steps=steps, capture=sites, seed=seed + 100
    )
    objective = EndToEnd(downstream=settings.stream, downstream_sites=tuple(sites), mixed=0.5)
    how = TraineeSettings(objective=objective, lr=settings.tuned_lr, start=None, scale=False)
    trainee = Trainee(made, how, steps=steps, batch=source.batch, seed=seed, name="streams")
    where = None if folder is None else folder / "together"
    train([trainee], source, settings=TrainSettings(), folder=where, progress=progress)
