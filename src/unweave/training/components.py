"""Stochastic parameter decomposition: learn rank-one pieces of a network's weights and their gates.

    loss =  faithfulness     mean over parameters of (W - sum_c U_c V_c^T)^2
          + stochastic       D(f(x), f(x | every decomposed layer masked))
          + layerwise        mean over layers of D(f(x), f(x | that layer alone masked))
          + weight * importance   sum over layers and pieces of upper(g_raw)^p, mean over inputs

with masks m = g + (1 - g) r, r ~ U(0, 1), drawn anew at every step. The penalty wants gates shut;
the stochastic terms allow it only for pieces whose presence or absence changes nothing. D is the
mean squared error (toy networks) or KL. Bushnaq, Braun & Sharkey 2025 (arXiv:2506.20790).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor, nn

from unweave.dictionaries.components.components import Components
from unweave.dictionaries.components.importance import upper_leaky
from unweave.dictionaries.components.masked import (
    clean_run,
    draw_masks,
    masked_run,
    run_with_written,
)
from unweave.progress import QUIET, Progress
from unweave.training.adam_state import part_state, restore_part
from unweave.training.checkpoint import Checkpoints, Metrics

Draw = Callable[[torch.Generator], Tensor]
"""Draws one batch of the target's inputs; must take its chance from the generator alone."""

_SMALLEST = 1e-12
_NAME = "components"


class ComponentsSettings(BaseModel):
    """How parameter components are learned (defaults: the paper's TMS 5-2)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: NonNegativeInt = 40_000
    """Steps of Adam; each draws one batch."""
    lr: PositiveFloat = 1e-3
    """Learning rate at the start; it falls to zero along a cosine."""
    importance_weight: NonNegativeFloat = 3e-3
    """Weight of the importance penalty: higher leaves fewer pieces in use."""
    importance_power: PositiveFloat = 1.0
    """The penalty's p; a small one is harsher on small importances."""
    faithfulness_weight: NonNegativeFloat = 1.0
    """Weight of the pieces' distance from the target's weights."""
    stochastic_weight: NonNegativeFloat = 1.0
    """Weight of the error with all layers masked at once."""
    layerwise_weight: NonNegativeFloat = 1.0
    """Weight of the mean error with one layer masked."""
    distance: Literal["mse", "kl"] = "mse"
    """How far outputs are apart: squared error, or KL from the original's softmax."""


class ComponentsLoss(NamedTuple):
    """The terms of the loss, unweighted, and how many pieces were in use."""

    faithfulness: Float[Tensor, ""]
    """Mean squared error of the weights."""
    stochastic: Float[Tensor, ""]
    """Distance with all layers masked."""
    layerwise: Float[Tensor, ""]
    """Mean distance with one layer masked."""
    importance: Float[Tensor, ""]
    """Penalised importances summed over pieces, per input."""
    in_use: Float[Tensor, ""]
    """Pieces with importance above zero per input (L0)."""

    def total(self, settings: ComponentsSettings) -> Float[Tensor, ""]:
        """The weighted sum that training minimises."""
        return (
            settings.faithfulness_weight * self.faithfulness
            + settings.stochastic_weight * self.stochastic
            + settings.layerwise_weight * self.layerwise
            + settings.importance_weight * self.importance
        )


def components_loss(
    target: nn.Module,
    components: Components,
    x: Tensor,
    *,
    generator: torch.Generator,
    settings: ComponentsSettings,
) -> ComponentsLoss:
    """All terms on one batch, with masks drawn from `generator`; differentiable."""
    clean = clean_run(target, components, x)
    found = components.importances(clean.inputs)
    matrices = components.by_name()
    masks = draw_masks(found, generator)
    masked = masked_run(target, components, x, masks)
    # Alone, a layer reads what the original gave it, and that is known already.
    layerwise = [
        _distance(
            clean.output,
            run_with_written(target, x, name, matrices[name].written(found[name].inner, mask)),
            settings,
        )
        for name, mask in draw_masks(found, generator).items()
    ]
    penalties = [
        (upper_leaky(one.raw) + _SMALLEST).pow(settings.importance_power).sum(-1).mean()
        for one in found.values()
    ]
    in_use = [(one.raw.detach() > 0).sum(-1).float().mean() for one in found.values()]
    return ComponentsLoss(
        components.faithfulness(target),
        _distance(clean.output, masked, settings),
        torch.stack(layerwise).mean(),
        torch.stack(penalties).sum(),
        torch.stack(in_use).sum(),
    )


def learn_components(
    target: nn.Module,
    components: Components,
    draw: Draw,
    *,
    seed: int,
    settings: ComponentsSettings | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Learn the components in place; returns the log, one line a step.

    The target is left as it is. Step s draws its inputs and masks from a generator of its own,
    made from the seed and s, so that a resumed run ends in the same bits.
    """
    settings, checkpoints = settings or ComponentsSettings(), checkpoints or Checkpoints(None)
    parameters = list(components.parameters())
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, fused=True)
    metrics: Metrics = []
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done, metrics = progressed.done, progressed.metrics
        restore_part(components, optimizer, progressed.tensors[_NAME])
    with progress.task("Decomposing weights", total=settings.steps, unit="steps") as advance:
        advance(done)
        for step in range(done, settings.steps):
            generator = torch.Generator().manual_seed((seed << 24) + step)
            x = draw(generator)
            loss = components_loss(target, components, x, generator=generator, settings=settings)
            gradients = torch.autograd.grad(loss.total(settings), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            optimizer.step()
            line = {term: value.item() for term, value in loss._asdict().items()}
            metrics.append({"stage": _NAME, "step": step, **line})
            advance(1)
            checkpoints.offer(step + 1, metrics, lambda: {_NAME: part_state(components, optimizer)})
    for parameter in parameters:
        parameter.grad = None
    return metrics


def _distance(original: Tensor, other: Tensor, settings: ComponentsSettings) -> Tensor:
    """Mean over inputs (and, squared, over outputs) of how far two outputs are apart."""
    if settings.distance == "mse":
        return (other - original).square().mean()
    p, q = original.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()
