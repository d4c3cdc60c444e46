"""Running a network on a part of its parameter components.

    m = g + (1 - g) r,   r ~ U(0, 1)

A piece of importance 1 stays whole; one of importance 0 is scaled by anything between nothing and
all of it. If the network's output survives every such draw, the unimportant pieces did not matter,
neither present nor absent nor in between (Bushnaq, Braun & Sharkey 2025, arXiv:2506.20790).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.components.components import (
    Components,
    MatrixComponents,
    linear_layer,
)
from unweave.dictionaries.components.importance import Importance

Replacement = Callable[[Tensor], Tensor]
"""From a linear layer's input [*batch, d_in] to what is taken for its output [*batch, d_out]."""


class CleanRun(NamedTuple):
    """What the original network did."""

    output: Tensor
    """Its output."""
    inputs: dict[str, Tensor]
    """What each decomposed layer was given, by name."""


@torch.no_grad()
def clean_run(target: nn.Module, components: Components, x: Tensor) -> CleanRun:
    """Run the original and keep what the decomposed layers read."""
    inputs: dict[str, Tensor] = {}
    hooks = [
        target.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
        for name in components.by_name()
    ]
    try:
        output = target(x)
    finally:
        for hook in hooks:
            hook.remove()
    return CleanRun(output, inputs)


def masked_run(
    target: nn.Module, components: Components, x: Tensor, masks: Mapping[str, Tensor]
) -> Tensor:
    """The target's output with each layer in `masks` made of its scaled pieces, its bias kept.

    A mask is [*batch, components]; layers that `masks` does not name stay original.
    """
    matrices = components.by_name()
    replacements = {name: _masked(target, matrices[name], mask) for name, mask in masks.items()}
    with swapped(target, replacements):
        return target(x)


def run_with_written(target: nn.Module, x: Tensor, name: str, written: Tensor) -> Tensor:
    """The target's output when layer `name` writes `written` [*batch, d_out], its bias added."""
    with swapped(target, {name: lambda _: _biased(target, name, written)}):
        return target(x)


def draw_masks(
    importances: Mapping[str, Importance], generator: torch.Generator
) -> dict[str, Float[Tensor, "*batch components"]]:
    """One random mask a layer: between g and 1, uniformly."""
    masks = {}
    for name, found in importances.items():
        gate = found.gate
        r = torch.rand(gate.shape, generator=generator, dtype=gate.dtype)
        masks[name] = gate + (1 - gate) * r
    return masks


@contextmanager
def swapped(target: nn.Module, replacements: Mapping[str, Replacement]) -> Iterator[None]:
    """Let each named layer compute its replacement for as long as the context lasts."""
    layers = [target.get_submodule(name) for name in replacements]
    try:
        for layer, replacement in zip(layers, replacements.values(), strict=True):
            # An instance's own attribute comes before the class's method.
            layer.__dict__["forward"] = replacement
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _masked(target: nn.Module, matrix: MatrixComponents, mask: Tensor) -> Replacement:
    name = matrix.spec.name
    return lambda a: _biased(target, name, matrix.written(matrix.inner(a), mask))


def _biased(target: nn.Module, name: str, written: Tensor) -> Tensor:
    bias = linear_layer(target, name).bias
    return written if bias is None else written + bias
