"""One short training run with its settings and what came of it: the unit of probes and sweeps.

Trials that share batch, tokens and seed see the same vectors in the same order, so they are trained
in one pass of the data.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from time import perf_counter

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, autoencoder
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.batches import ArraySource
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.schedule import Schedule
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

SITE = "vectors"
"""What a trial calls the vectors it is given."""
LEARNER = 1_000_003
"""Added to a trial's seed for the weights, so that data and learner never share one."""
HELDOUT_ROWS = 16_384
"""Held-out vectors that a trial is measured on; a latent silent on all of them counts as dead."""
ADAM_OPERATIONS = 12
"""Floating-point operations of Adam per weight and step."""


class Trial(BaseModel):
    """The settings of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_latents: PositiveInt
    """Number of latents (n)."""
    k: PositiveInt | None = None
    """TopK with so many latents per token ..."""
    l1: NonNegativeFloat | None = None
    """... or ReLU with an L1 penalty of this weight, on vectors of norm sqrt(width)."""
    target_l0: PositiveFloat | None = None
    """With `l1`: steer the weight towards so many active latents."""
    lr: PositiveFloat
    """Peak learning rate of Adam."""
    tokens: PositiveInt
    """Vectors to train on, repetitions counted."""
    batch: PositiveInt = 256
    """Vectors per step."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run over which the rate rises."""
    seed: int = 0
    """Seed of the order of the data; the weights get one of their own from it."""

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return max(1, self.tokens // self.batch)

    def spec(self, site: str, width: int) -> DictionarySpec:
        """The dictionary it trains."""
        if (self.k is None) == (self.l1 is None):
            raise UserError("A trial takes either k (TopK) or l1 (ReLU with a penalty), not both")
        if self.k is not None:
            return autoencoder(site, width, self.n_latents, TopK(k=self.k))
        return autoencoder(site, width, self.n_latents, ReLU(), decoder="free")

    def settings(self) -> TraineeSettings:
        """How it is trained."""
        charged: tuple[Penalty, ...] = ()
        if self.l1 is not None:
            charged = (Penalty(form=L1(), weight=self.l1, target_l0=self.target_l0),)
        return TraineeSettings(lr=self.lr, penalties=charged, schedule=Schedule(warmup=self.warmup))

    def flops(self, width: int) -> float:
        """Floating-point operations of the run: encoder, decoder, gradients and Adam.

        TopK computes every pre-activation and does the rest for k latents alone; ReLU does all of
        it densely.
        """
        weights = 2 * self.n_latents * width
        per_vector = weights + 8 * width * self.k if self.k is not None else 5 * weights
        per_step = ADAM_OPERATIONS * weights
        return float(self.steps * (self.batch * per_vector + per_step))


class Outcome(BaseModel):
    """What came of a trial, on held-out vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trial: Trial
    """Its settings."""
    fvu: float
    """Share of the variance that is left."""
    l0: float
    """Latents per vector that are not zero."""
    dead: float
    """Share of the latents that never fired."""
    flops: float
    """Operations of the training run."""
    seconds: float
    """Its share of the time of the pass it was part of, by operations."""


def run_trials(
    trials: Sequence[Trial],
    vectors: Float[Tensor, "rows width"],
    heldout: Float[Tensor, "held width"],
    *,
    workers: Workers | None = None,
    progress: Progress = QUIET,
) -> Iterator[Outcome]:
    """Train all trials in as few passes as they allow; outcomes come pass by pass."""

    def shared(trial: Trial) -> tuple[int, int, int]:
        return trial.batch, trial.tokens, trial.seed

    for (batch, _, seed), members in groupby(sorted(trials, key=shared), key=shared):
        together = list(members)
        if len(vectors) < batch:
            raise UserError(f"{len(vectors)} vectors do not fill a batch of {batch}: harvest more")
        source = ArraySource({SITE: vectors}, batch=batch, steps=together[0].steps, seed=seed)
        yield from _one_pass(together, source, heldout, workers, progress)


def _one_pass(
    trials: list[Trial],
    source: ArraySource,
    heldout: Tensor,
    workers: Workers | None,
    progress: Progress,
) -> list[Outcome]:
    width = heldout.shape[1]
    trainees = [
        Trainee(
            {SITE: Dictionary(trial.spec(SITE, width))},
            trial.settings(),
            steps=trial.steps,
            batch=trial.batch,
            seed=LEARNER + trial.seed,
            name=str(place),
        )
        for place, trial in enumerate(trials)
    ]
    start = perf_counter()
    train(trainees, source, workers=workers, progress=progress)
    seconds = perf_counter() - start
    total = sum(trial.flops(width) for trial in trials)
    outcomes = []
    for trial, trainee in zip(trials, trainees, strict=True):
        flops = trial.flops(width)
        found = judged(trainee.dictionaries, heldout)
        outcomes.append(Outcome(trial=trial, flops=flops, seconds=seconds * flops / total, **found))
    return outcomes


@torch.no_grad()
def judged(
    dictionaries: Mapping[str, Dictionary], heldout: Float[Tensor, "held width"]
) -> dict[str, float]:
    """FVU, L0 and dead share of the one dictionary in `dictionaries`, on held-out vectors."""
    (dictionary,) = dictionaries.values()
    rows = heldout[:HELDOUT_ROWS]
    pieces = [
        fidelity_sums(part, dictionary(part), dictionary.encode(part)) for part in rows.split(4096)
    ]
    sums = pieces[0]
    for piece in pieces[1:]:
        sums = sums + piece
    fidelity = fidelity_of(sums)
    return {"fvu": fidelity.fvu, "l0": fidelity.l0, "dead": 1 - fidelity.alive}
