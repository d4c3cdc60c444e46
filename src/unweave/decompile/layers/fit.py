"""Interactions trained end to end: on the network's output and on the features of every layer.

    loss = KL(original || decompiled) + features mean_l gap(f^_l, f_l) + pattern mean KL of patterns

where f_l is what the autoencoder after block l makes of the subject's own stream, and

    gap = sum |(pre on what is on in f_l, f^_l elsewhere) - f_l|^2 / sum |f_l|^2

so that a feature that should be on and was not among the k largest is pulled up as well. At first
every block reads the true features (splice mode `clean`, all blocks at once); then in a share of
the steps each reads either those or what came out of the block before it, and in the others the
network runs by itself (`propagated`). Patterns are the subject's own at first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.decompile.gaps import feature_gap, pattern_gap
from unweave.decompile.layers.codes import code_stream
from unweave.decompile.layers.network import LayerNetwork, LayerRun
from unweave.dictionaries.dictionary import Dictionary
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.adam_state import part_state, restore_part
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.objectives.divergence import mean_kl
from unweave.training.schedule import linear_decay


class InteractionSettings(BaseModel):
    """How interactions are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: PositiveInt = 350_000
    """Tokens to train on."""
    rows: PositiveInt = 8
    """Rows of a step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    features: NonNegativeFloat = 1.0
    """Weight of the features' gap beside the KL."""
    pattern: NonNegativeFloat = 0.3
    """Weight of the patterns' KL, where patterns are made of features."""
    clean_until: float = Field(default=0.3, ge=0, le=1)
    """Share of the steps, from the first on, in which every block reads the true features."""
    exact_until: float = Field(default=0.15, ge=0, le=1)
    """Share of the steps, from the first on, in which patterns are the subject's own."""
    mixed: float = Field(default=0.4, ge=0, le=1)
    """Of the later steps, the share in which each block reads true features or not by chance."""
    clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""


class Truth(NamedTuple):
    """What the subject itself does on rows of text."""

    logits: Float[Tensor, "batch pos vocab"]
    """Its predictions."""
    features: list[Float[Tensor, "batch pos _"]]
    """Features of its stream after each block."""
    patterns: list[Float[Tensor, "batch heads query key"]]
    """Where its heads look."""


@torch.no_grad()
def truth_of(
    subject: Subject, dictionaries: Sequence[Dictionary], rows: Int[Tensor, "batch pos"]
) -> Truth:
    """One pass of the subject, coded by the autoencoders."""
    blocks = [f"blocks.{layer}" for layer in range(subject.n_layers)]
    streams, looks = ([f"{b}.{name}" for b in blocks] for name in ("resid_post", "attn.pattern"))
    run = subject.run(rows, capture=[*streams, *looks])
    assert run.logits is not None
    coded = [
        code_stream(dictionary, run.sites[site].float())
        for dictionary, site in zip(dictionaries, streams, strict=True)
    ]
    return Truth(run.logits, coded, [run.sites[site].float() for site in looks])


def fit_interactions(
    network: LayerNetwork,
    subject: Subject,
    dictionaries: Sequence[Dictionary],
    tokens: Int[Tensor, "rows pos"],
    *,
    seed: int,
    settings: InteractionSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train all weights of a network of layers in place; returns the log, one line a step.

    Step s depends on the seed, s and the state before it alone: a resumed run ends in the same
    bits.
    """
    settings, checkpoints = settings or InteractionSettings(), checkpoints or Checkpoints(None)
    per_step = settings.rows * tokens.shape[1]
    steps = max(1, settings.tokens // per_step)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        restore_part(network, optimizer, progressed.tensors["network"])
    network.train()
    with progress.task("Fitting interactions", total=steps * per_step, unit="tokens") as advance:
        advance(done * per_step)
        for step in range(done, steps):
            generator = torch.Generator().manual_seed((seed << 24) + step)
            drawn = torch.randint(len(tokens), (settings.rows,), generator=generator)
            truth = truth_of(subject, dictionaries, tokens[drawn])
            run = _run(network, tokens[drawn], truth, step / steps, generator, settings)
            loss, seen = _loss(run, truth, settings)
            loss.backward()
            _update(network, optimizer, settings.lr * linear_decay(step, steps), settings.clip)
            metrics.append({"stage": "interactions", "step": step, **seen})
            advance(per_step)
            checkpoints.offer(
                step + 1, metrics, lambda: {"network": part_state(network, optimizer)}
            )
    network.eval()
    return metrics


def _run(
    network: LayerNetwork,
    rows: Tensor,
    truth: Truth,
    done: float,
    generator: torch.Generator,
    settings: InteractionSettings,
) -> LayerRun:
    """One pass in the mode that is due."""
    reads = dict(enumerate(truth.features[:-1], start=1))
    if done >= settings.clean_until:
        mixed = torch.rand((), generator=generator) < settings.mixed
        keep = torch.rand(len(reads), generator=generator) < 0.5
        reads = {n: f for (n, f), on in zip(reads.items(), keep, strict=True) if mixed and on}
    exact = not network.spec.patterns or done < settings.exact_until
    return network(rows, patterns=truth.patterns if exact else None, given=reads)


def _loss(
    run: LayerRun, truth: Truth, settings: InteractionSettings
) -> tuple[Tensor, dict[str, float]]:
    kl = mean_kl(truth.logits[:, 1:].flatten(0, 1), run.logits[:, 1:].flatten(0, 1))
    gaps = [
        feature_gap(step.pre, mine, true)
        for step, mine, true in zip(run.steps, run.features, truth.features, strict=True)
    ]
    features = torch.stack(gaps).mean()
    looked = [pattern_gap(p, q) for p, q in zip(truth.patterns, run.patterns, strict=True)]
    pattern = torch.stack(looked).mean()
    loss = kl + settings.features * features + settings.pattern * pattern
    return loss, {"kl": kl.item(), "features": features.item(), "pattern": pattern.item()}


def _update(network: LayerNetwork, optimizer: torch.optim.Adam, lr: float, clip: float) -> None:
    for parameter in network.parameters():
        if parameter.grad is not None:
            # Fused Adam on the processor takes for granted that strides agree.
            parameter.grad = parameter.grad.contiguous()
    torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
