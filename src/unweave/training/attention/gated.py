"""Train gated attention blocks to do what a block of attention does, with few gates open.

    loss = mean |out - out*|^2 / d_model + alpha mean_{b, t, s <= t} (sum_h gate_hts^p)^(1/p)

The norm over heads with p < 1 is least where one head alone is open, so that what two heads of the
original did together moves into one. Mathwin, Akar & Sharkey 2024; they average the norm over all
pairs of places, here over those that attention can use.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unweave.dictionaries.attention.gated_block import GatedBlock
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.schedule import Schedule

_NAME = "gated"
_SHUT = 1e-8
"""Gates this narrow count as shut: below, the norm's slope would be without bounds."""


class GatedSettings(BaseModel):
    """How gated blocks are trained.

    Published: 100,000 steps at a constant rate of 5e-4 with alpha .5 (2 heads, 3 trigrams) and .1
    (3 heads, 4), 1e-3 with alpha .3 (4 heads, 5).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    alpha: NonNegativeFloat = 0.3
    """Weight of the open gates."""
    rise: tuple[float, float] = (0.0, 0.0)
    """Shares of the run between which alpha rises from 0 (published: none). A price from the start
    shuts heads before they have learned anything."""
    power: float = Field(default=0.6, gt=0, le=1)
    """The norm's p."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    beta2: float = Field(default=0.999, gt=0, lt=1)
    """Adam's memory of squared gradients; short runs need a short one, or the first steps, whose
    gradients are large, slow all others."""
    schedule: Schedule = Schedule(shape="cosine", warmup=0.0, decay_from=0.0)
    """How the rate moves."""
    log_every: PositiveInt = 100
    """Steps from one line of the log to the next."""

    def price(self, step: int, steps: int) -> float:
        """Alpha at a step."""
        start, end = self.rise
        if end <= start:
            return self.alpha if step >= start * steps else 0.0
        return self.alpha * min(max((step / steps - start) / (end - start), 0.0), 1.0)


class GatedLoss(NamedTuple):
    """The terms of the loss of one block, unweighted."""

    error: Float[Tensor, ""]
    """Mean squared error of the output."""
    gates: Float[Tensor, ""]
    """Mean norm of the gates over heads."""


@runtime_checkable
class Batch(Protocol):
    """A tuple of tensors, the first axis of each over blocks; seen by one block, that is gone."""

    def loss(self, block: GatedBlock, power: float) -> GatedLoss:
        """Both terms for one block; differentiable."""
        ...


@runtime_checkable
class BlockSource(Protocol):
    """Batches, each a function of the step alone."""

    @property
    def steps(self) -> int:
        """How many there are."""
        ...

    def at(self, step: int) -> Batch:
        """The batch of one step."""
        ...


def norm_over_heads(
    gate: Float[Tensor, "batch heads query key"], power: float
) -> Float[Tensor, "batch query key"]:
    """(sum_h gate^p)^(1/p): for equal gates, more the more heads share them."""
    return gate.clamp_min(_SHUT).pow(power).sum(1).pow(1 / power)


class _Watched(nn.Module):
    """A block whose forward pass is its loss on one batch, for `functional_call`."""

    def __init__(self, block: GatedBlock, power: float) -> None:
        super().__init__()
        self.block, self._power = block, power

    def forward(self, batch: Batch) -> GatedLoss:
        return batch.loss(self.block, self._power)


class _Stack:
    """Blocks of one shape as one: every parameter with an axis over blocks in front."""

    def __init__(self, blocks: Sequence[GatedBlock], settings: GatedSettings) -> None:
        self._blocks = [_Watched(one, settings.power) for one in blocks]
        self._all, self._buffers = stack_module_state(cast(list[nn.Module], self._blocks))
        self.learned = {name: one for name, one in self._all.items() if one.requires_grad}
        betas = 0.9, settings.beta2
        self.adam = torch.optim.Adam(self.learned.values(), lr=settings.lr, betas=betas, fused=True)

    def loss(self, batch: Batch) -> GatedLoss:
        """Both terms of every block, [blocks]."""

        def of_one(parameters: dict, buffers: dict, batch: Batch) -> GatedLoss:
            return functional_call(self._blocks[0], (parameters, buffers), (batch,))

        return vmap(of_one)(self._all, self._buffers, batch)

    def step(self, loss: Float[Tensor, ""], lr: float) -> None:
        """One step of Adam down the sum of all blocks' losses."""
        slopes = torch.autograd.grad(loss, list(self.learned.values()))
        for parameter, slope in zip(self.learned.values(), slopes, strict=True):
            # Fused Adam takes a slope to lie in memory as its weight does.
            parameter.grad = slope.contiguous()
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()

    def hand_back(self) -> None:
        """Give every block its own weights."""
        together = {**self._all, **self._buffers}
        for index, one in enumerate(self._blocks):
            one.load_state_dict({name: rows[index].detach() for name, rows in together.items()})

    def state(self) -> dict[str, Tensor]:
        """Weights and moments by name."""
        tensors = {f"part.{name}": one.detach() for name, one in self.learned.items()}
        for name, one in self.learned.items():
            for moment, value in self.adam.state[one].items():
                tensors[f"adam.{name}.{moment}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` took."""
        for name, one in self.learned.items():
            one.data.copy_(tensors[f"part.{name}"])
            start = f"adam.{name}."
            self.adam.state[one] = {
                key.removeprefix(start): value.to(one.device)
                for key, value in tensors.items()
                if key.startswith(start)
            }


def train_gated_blocks(
    blocks: Sequence[GatedBlock],
    source: BlockSource,
    settings: GatedSettings | None = None,
    *,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train blocks of one shape in place, all at once, each on its own part of every batch.

    No block's training depends on the others', but for last digits: their products are taken
    together. Parameters that ask for no gradient stay as they are. Returns the log, one line a
    block every so many steps. A cut run resumes to the same bits.

    Raises:
        UserError: no blocks, or blocks of different shapes.
    """
    settings, checkpoints = settings or GatedSettings(), checkpoints or Checkpoints(None)
    if not blocks or len({one.spec.model_copy(update={"layer": 0}) for one in blocks}) > 1:
        raise UserError("Gated blocks that are trained at once must be of one shape, one at least")
    stack = _Stack(blocks, settings)
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        stack.restore(progressed.tensors[_NAME])
    with progress.task("Training gated blocks", total=source.steps, unit="steps") as advance:
        advance(done)
        for step in range(done, source.steps):
            loss = stack.loss(source.at(step))
            total = (loss.error + settings.price(step, source.steps) * loss.gates).sum()
            stack.step(total, settings.lr * settings.schedule.at(step, source.steps))
            if step % settings.log_every == 0 or step == source.steps - 1:
                metrics += _lines(step, loss)
            advance(1)
            checkpoints.offer(step + 1, metrics, lambda: {_NAME: stack.state()})
    stack.hand_back()
    return metrics


def _lines(step: int, loss: GatedLoss) -> Metrics:
    both = zip(loss.error.tolist(), loss.gates.tolist(), strict=True)
    return [
        {"block": index, "step": step, "error": error, "gates": gates}
        for index, (error, gates) in enumerate(both)
    ]
