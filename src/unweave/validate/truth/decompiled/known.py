"""Networks of which all is known: who writes which directions, and who reads from whom.

Compiled programs, ours and Tracr's, brought to one form, and a control: the same architecture with
random weights, held to the program's structure, of which it has nothing.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject import Subject, wrap_module
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.edge_scores import writing
from unweave.validate.worlds.programs.layout import EMBED, POSITIONS, Edge
from unweave.validate.worlds.tracr import CONSTANT, TracrCase


@dataclass(frozen=True)
class Known:
    """A network without norms beside what is known of it."""

    name: str
    """What it is called."""
    subject: Subject
    """The network."""
    edges: frozenset[Edge]
    """The true circuit, between components."""
    written: Mapping[str, Float[Tensor, "features d_model"]]
    """Unit directions that each head and MLP of the circuit writes variables along."""
    draw: Callable[[int, int], Int[Tensor, "rows pos"]]
    """Rows of random inputs, from how many and a seed."""


def known_program(compiled: Compiled) -> Known:
    """A program that we compiled."""
    directions, program = compiled.directions, compiled.program
    written = {
        v.component: directions[v.span]
        for v in compiled.variables
        if v.used and v.component not in (EMBED, POSITIONS)
    }
    return Known(
        program.name,
        compiled.subject,
        compiled.edges,
        {name: torch.nn.functional.normalize(rows, dim=1) for name, rows in written.items()},
        lambda rows, seed: program.draw(rows, length=program.indices.length, seed=seed),
    )


def known_tracr(case: TracrCase) -> Known:
    """A program that Tracr compiled: its directions are the axes of the stream."""
    axes, length = torch.eye(len(case.labels)), case.subject.context - 1
    written = {}
    for component in sorted({edge.source for edge in case.edges} - {EMBED, POSITIONS}):
        told = (writing(case.subject, component) != 0).any(0)
        varying = torch.tensor([label not in CONSTANT for label in case.labels])
        written[component] = axes[told & varying]
    return Known(
        case.name,
        case.subject,
        case.edges,
        written,
        lambda rows, seed: case.draw(rows, length=length, seed=seed),
    )


@torch.no_grad()
def with_random_weights(known: Known, *, seed: int) -> Known:
    """The control: every matrix drawn anew with the size it had, the truth left as it was."""
    model = copy.deepcopy(known.subject.model)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and weight.numel():
            drawn = torch.randn(weight.shape, generator=generator)
            # Sharp attention would make every pattern a hard one, and every input the same.
            size = weight.std() if ".q." not in name else weight.shape[1] ** -0.5
            weight.copy_(drawn * size)
    name = f"{known.name}, random weights"
    return Known(name, wrap_module(model, name=name), known.edges, known.written, known.draw)
