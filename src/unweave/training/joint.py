"""The joint stage: parts tuned together so that the whole network keeps its predictions.

    loss = KL(original || spliced) + weight * mean over layers and tokens of |h' - h|^2 / |h|^2
         + weight * mean over layers, heads and queries of KL(pattern || pattern')

where h is the residual stream after each block (Braun et al. 2024, end-to-end + downstream). The
patterns count in blocks that have a part for queries or keys: a pattern may be wrong where little
moves along it, so that predictions hardly tell. Parts trained in one splice mode fail in the
others, so each micro-batch draws its own: all parts in place, or a random half of them with the
rest of the network original.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch import Tensor, nn

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.training.adam_state import part_state, restore_part
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.schedule import linear_decay
from unweave.training.stand_in import AtStart, stand_ins
from unweave.training.update import update_

_POSITIONS = 16
"""Positions whose logits are compared at once: 16 x 49,152 floats are three megabytes."""


class JointSettings(BaseModel):
    """How the parts are tuned together."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tokens: NonNegativeInt = 60_000
    """Tokens to tune on; 0 leaves the parts as the local stage made them."""
    micro_rows: int = Field(default=4, ge=1)
    """Rows that one worker runs forward and backward at once."""
    micro_batches: int = Field(default=2, ge=1)
    """Micro-batches whose gradients make one step."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate of Adam."""
    stream_weight: NonNegativeFloat = 0.3
    """Weight of the residual stream's relative error beside the KL."""
    pattern_weight: NonNegativeFloat = 0.3
    """Weight of the attention patterns' KL, where queries or keys have parts."""
    pattern_every: PositiveInt = 1
    """Patterns are compared in one micro-batch of so many, with as many times the weight: all of
    them at once are half of the work on a narrow network."""
    everything_share: float = Field(default=0.6, ge=0, le=1)
    """Share of micro-batches with all parts in place; the others take a random half of them."""
    clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""


@runtime_checkable
class Besides(Protocol):
    """A loss of one's own beside the stage's."""

    def __call__(
        self,
        subject: Subject,
        parts: Mapping[str, Part],
        rows: Int[Tensor, "rows pos"],
        logits: Float[Tensor, "rows pos vocab"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Of one micro-batch, with the original's logits; all chance from the generator."""
        ...


class _Losses(NamedTuple):
    kl: float
    stream: float
    pattern: float | None
    besides: float | None
    gradients: tuple[Tensor, ...]


def tune_jointly(
    subject: Subject,
    parts: dict[str, Part],
    tokens: Int[Tensor, "rows pos"],
    *,
    workers: Workers,
    seed: int,
    settings: JointSettings | None = None,
    besides: Besides | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Tune the parts in place; returns the log, one line a step.

    Step s depends only on the seed, s and the state before it, so that a resumed run ends in the
    same bits; micro-batches are summed in their order whatever the number of workers.
    """
    settings, checkpoints = settings or JointSettings(), checkpoints or Checkpoints(None)
    rows_per_step = settings.micro_rows * settings.micro_batches
    steps = settings.tokens // (rows_per_step * tokens.shape[1])
    parameters = [p for part in parts.values() for p in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, fused=True)
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        for name, part in parts.items():
            restore_part(part, optimizer, progressed.tensors[name])
    per_step = rows_per_step * tokens.shape[1]
    for part in parts.values():
        part.train()
    with progress.task("Tuning jointly", total=steps * per_step, unit="tokens") as advance:
        advance(done * per_step)
        for step in range(done, steps):
            losses = list(
                workers.map(
                    lambda micro, s=step: _micro_batch(
                        workers.twin(subject),
                        parts,
                        parameters,
                        tokens,
                        seed,
                        s,
                        micro,
                        settings,
                        besides,
                    ),
                    range(settings.micro_batches),
                )
            )
            _update(parts, parameters, optimizer, losses, step, steps, settings)
            metrics.append({"stage": "joint", "step": step, **_means(losses)})
            advance(per_step)
            checkpoints.offer(
                step + 1, metrics, lambda: {n: part_state(p, optimizer) for n, p in parts.items()}
            )
    for part in parts.values():
        part.eval().zero_grad()
    return metrics


def _micro_batch(
    subject: Subject,
    parts: dict[str, Part],
    parameters: Sequence[Tensor],
    tokens: Tensor,
    seed: int,
    step: int,
    micro: int,
    settings: JointSettings,
    besides: Besides | None,
) -> _Losses:
    number = step * settings.micro_batches + micro
    generator = torch.Generator().manual_seed((seed << 24) + number)
    drawn = torch.randint(tokens.shape[0], (settings.micro_rows,), generator=generator)
    streams = [f"blocks.{layer}.resid_post" for layer in range(subject.n_layers)]
    looks = settings.pattern_weight > 0 and number % settings.pattern_every == 0
    patterns = _patterns_of(parts) if looks else []
    rows = tokens[drawn]
    with torch.no_grad():
        original = subject.run(rows, capture=[*streams, *patterns])
    placed = stand_ins(parts.values(), AtStart())
    if torch.rand((), generator=generator) >= settings.everything_share:
        keep = torch.rand(len(placed), generator=generator) < 0.5
        placed = {name: s for (name, s), kept in zip(placed.items(), keep, strict=True) if kept}
    with subject.swapped(placed), torch.enable_grad():
        spliced = subject.run(rows, capture=[*streams, *patterns])
    assert original.logits is not None
    assert spliced.logits is not None
    kl = _MeanKL.apply(spliced.logits, original.logits)
    gaps = [_relative_gap(original.sites[site], spliced.sites[site]) for site in streams]
    stream = torch.stack(gaps).mean()
    loss, pattern = kl + settings.stream_weight * stream, None
    if patterns:
        gap = torch.stack([_pattern_gap(original.sites[s], spliced.sites[s]) for s in patterns])
        weight = settings.pattern_weight * settings.pattern_every
        loss, pattern = loss + weight * gap.mean(), gap.mean().item()
    more = None
    if besides is not None:
        own = besides(subject, parts, rows, original.logits, generator)
        loss, more = loss + own, own.item()
    if not loss.requires_grad:  # no part was drawn
        still = tuple(torch.zeros_like(p) for p in parameters)
        return _Losses(kl.item(), stream.item(), pattern, more, still)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    filled = tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    )
    return _Losses(kl.item(), stream.item(), pattern, more, filled)


def _means(losses: Sequence[_Losses]) -> dict[str, float]:
    """What the log says of a step."""
    found = {
        name: [value for loss in losses if (value := getattr(loss, name)) is not None]
        for name in ("kl", "stream", "pattern", "besides")
    }
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _patterns_of(parts: Iterable[str]) -> list[str]:
    """Patterns that parts have a say in."""
    layers = {place.layer for place in map(place_of, parts) if place.kind in ("q", "k")}
    return [f"blocks.{layer}.attn.pattern" for layer in sorted(layers)]


def _pattern_gap(original: Tensor, spliced: Tensor) -> Tensor:
    """KL of patterns [rows, heads, query, key]; the first query has but one key to look at."""
    p, q = (pattern[:, :, 1:].float().clamp_min(1e-12) for pattern in (original, spliced))
    return (p * (p.log() - q.log())).sum(-1).mean()


def kl_per_token(
    original: Float[Tensor, "*batch vocab"], spliced: Float[Tensor, "*batch vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(original || spliced) in nats."""
    p, q = original.float().log_softmax(-1), spliced.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


class _MeanKL(torch.autograd.Function):
    """The mean of `kl_per_token` over all positions but the first, and its gradient, softmax(q) -
    softmax(p), taken of few positions at a time: a large vocabulary's logits would be written to
    memory and read again a dozen times over.
    """

    @staticmethod
    def forward(ctx, spliced, original):  # type: ignore[no-untyped-def]
        """Logits [rows, pos, vocab]."""
        gradient = torch.empty_like(spliced)
        gradient[:, 0] = 0
        count, total = gradient[:, 1:, 0].numel(), 0.0
        for row, teacher, out in zip(spliced, original, gradient, strict=True):
            for at in range(1, len(row), _POSITIONS):
                here = slice(at, at + _POSITIONS)
                p, q = teacher[here].float().log_softmax(-1), row[here].float().log_softmax(-1)
                odds, gap = p.exp(), p.sub_(q)
                total += torch.linalg.vecdot(odds, gap).double().sum()
                out[here] = q.exp_().sub_(odds).div_(count)
        ctx.save_for_backward(gradient)
        return (total / count).float()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        """The gradient in the spliced logits alone."""
        (gradient,) = ctx.saved_tensors
        return gradient if g == 1 else gradient * g.to(gradient.dtype), None


def _relative_gap(original: Tensor, spliced: Tensor) -> Tensor:
    # Per token, or the few tokens with massive activations would be all that counts.
    gap = (spliced[:, 1:] - original[:, 1:]).float().square().sum(-1)
    return (gap / original[:, 1:].float().square().sum(-1).clamp_min(1e-12)).mean()


def _update(
    parts: dict[str, Part],
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Adam,
    losses: Sequence[_Losses],
    step: int,
    steps: int,
    settings: JointSettings,
) -> None:
    for index, parameter in enumerate(parameters):
        total = losses[0].gradients[index]
        for other in losses[1:]:
            total = total.add_(other.gradients[index])
        total = total.div_(len(losses)) if len(losses) > 1 else total
        parameter.grad = total.contiguous()
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * linear_decay(step, steps)
    named = nn.ModuleDict({name.replace(".", "-"): part for name, part in parts.items()})
    update_(named, optimizer, limit=settings.clip, in_all=lambda squares: sum(squares.values()))
    for part in parts.values():
        part.unit_decoder_()
        part.zero_grad()  # as large as the parts themselves, and not needed while others are made
