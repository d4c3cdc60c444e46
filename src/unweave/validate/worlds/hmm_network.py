"""A small transformer trained on a hidden Markov language, nearly as good as can be."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.progress import QUIET, Progress
from unweave.subject import Subject, wrap_module
from unweave.subject.fresh import FreshSettings, fresh_llama
from unweave.validate.worlds.hmm import HiddenMarkov, HiddenRows


class LearnerSettings(BaseModel):
    """The network and its training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    positions: PositiveInt = 24
    """Length of rows, the start token among them."""
    layers: PositiveInt = 2
    """Blocks."""
    width: PositiveInt = 64
    """Dimensions of the residual stream."""
    steps: PositiveInt = 1200
    """Steps of AdamW."""
    batch: PositiveInt = 96
    """Rows a step; every one is new."""
    lr: PositiveFloat = 3e-3
    """Peak learning rate: up over the first twentieth, then down to zero along a cosine."""


class Excess(NamedTuple):
    """How good a network is on a language, in nats per token of held-out rows."""

    ce: float
    """Its cross-entropy."""
    best: float
    """That of the Bayes-optimal predictor on the same rows: nothing can be lower on average."""
    last_token: float
    """That of knowing the last token alone."""


def untrained_hmm_subject(
    process: HiddenMarkov, settings: LearnerSettings, *, seed: int
) -> Subject:
    """The network before training: a control."""
    return wrap_module(_network(process, settings, seed), name=f"{process.name}, untrained")


def train_hmm_subject(
    process: HiddenMarkov, settings: LearnerSettings, *, seed: int, progress: Progress = QUIET
) -> Subject:
    """Train on rows of the data seeds `seed * 10^6` onwards; sites are those of a Llama."""
    model = _network(process, settings, seed).train()
    adam = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    with progress.task(f"Training on {process.name}", total=settings.steps, unit="steps") as on:
        for step in range(settings.steps):
            warm = min(1.0, (step + 1) / (0.05 * settings.steps))
            cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            for group in adam.param_groups:
                group["lr"] = settings.lr * warm * cosine
            drawn = process.draw(settings.batch, settings.positions, seed=seed * 1_000_000 + step)
            logits = model(drawn.tokens).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1), drawn.tokens[:, 1:].flatten())
            adam.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            on(1)
    adam.zero_grad()
    return wrap_module(model, name=process.name)


@torch.no_grad()
def excess(subject: Subject, process: HiddenMarkov, rows: HiddenRows) -> Excess:
    """The subject beside the optimal predictor."""
    logits = subject.run(rows.tokens).logits
    assert logits is not None
    ce = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows.tokens[:, 1:].flatten()).item()
    return Excess(ce, process.best_ce(rows).mean().item(), process.last_token_ce())


@torch.no_grad()
def stream(subject: Subject, rows: HiddenRows, site: str) -> Float[Tensor, "vectors width"]:
    """A site's vectors at all positions but the first, row by row."""
    found = subject.run(rows.tokens, capture=[site], logits=False).sites[site]
    return found[:, 1:].flatten(0, 1).float()


def _network(process: HiddenMarkov, settings: LearnerSettings, seed: int) -> torch.nn.Module:
    sizes = FreshSettings(
        vocab_size=process.n_tokens + 1,
        start_token=process.n_tokens,
        context=settings.positions,
        layers=settings.layers,
        width=settings.width,
        neurons=2 * settings.width,
    )
    return fresh_llama(sizes, seed=seed)
