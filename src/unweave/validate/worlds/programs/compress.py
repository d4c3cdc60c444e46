"""A compiled program squeezed into fewer dimensions than it has variables' values.

    x -> x W,  every component reads through W^T and writes through W

W [directions, width] is learned so that the network, its own weights untouched, still computes
what it computed: cross-entropy of the program's answers, and the squared error of what every
component writes, before W. With fewer dimensions than directions they cannot all be orthogonal:
those that can be told apart all the same, by being sparse and by what the softmax and the ReLUs
forgive, share dimensions. Tracr's compression (Lindner et al. 2023, section 5).
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import wrap_module
from unweave.validate.worlds.programs.compiled import Compiled, project
from unweave.validate.worlds.programs.network import ProgramNetwork


class CompressSettings(BaseModel):
    """How W is learned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    width: PositiveInt
    """Dimensions of the compressed residual stream."""
    steps: PositiveInt = 3000
    """Steps of Adam."""
    batch: PositiveInt = 64
    """Sequences a step, all of one length; lengths take turns."""
    pool: PositiveInt = 512
    """Sequences of each length that batches are drawn from."""
    lr: PositiveFloat = 1e-2
    """Learning rate at the start, falling to zero along a cosine."""
    component_weight: NonNegativeFloat = 1.0
    """Weight of the squared error of what components write, beside the cross-entropy."""


class Passed(NamedTuple):
    """One pass through W."""

    written: list[Tensor]
    """What each attention and MLP writes over the uncompressed directions."""
    logits: Float[Tensor, "rows pos vocab"]
    """The output."""


def squeezed_run(
    network: ProgramNetwork,
    rows: Int[Tensor, "rows pos"],
    W: Float[Tensor, "directions width"],
) -> Passed:
    """Run an uncompressed network with its stream squeezed through W; differentiable in W."""
    places = network.positions(torch.arange(rows.shape[1]))
    stream = (network.embed(rows) + places) @ W
    written = []
    for layer in range(network.config.num_hidden_layers):
        block = network.block(layer)
        for part in (block.attn, block.mlp):
            written.append(part(stream @ W.T))
            stream = stream + written[-1] @ W
    return Passed(written, network.unembed(stream @ W.T))


def compress(
    compiled: Compiled,
    settings: CompressSettings,
    *,
    seed: int,
    progress: Progress = QUIET,
) -> Compiled:
    """Learn W for a compiled program, on random inputs of its own.

    The result's `directions` are the rows of W; its edges and variables are those of the original.

    Raises:
        UserError: a program compiled into a rotated basis.
    """
    network = compiled.subject.model
    size = compiled.layout.size
    if not isinstance(network, ProgramNetwork) or not torch.equal(
        compiled.directions, torch.eye(size)
    ):
        raise UserError("Only a program compiled without rotation can be compressed")
    generator = torch.Generator().manual_seed(seed)
    drawn_columns = torch.randn(size, settings.width, generator=generator)
    # Orthonormal columns: rows of length one on average, that interfere as little as they can.
    W = torch.linalg.qr(drawn_columns).Q * (size / settings.width) ** 0.5
    W.requires_grad_()
    adam = torch.optim.Adam([W], lr=settings.lr)
    drawn = _training_rows(compiled, settings, seed)
    with progress.task("Compressing", total=settings.steps, unit="steps") as advance:
        for step in range(settings.steps):
            for group in adam.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            adam.zero_grad()
            rows, answers = drawn[step % len(drawn)]
            chosen = torch.randint(len(rows), (settings.batch,), generator=generator)
            loss = _loss(network, rows[chosen], answers[chosen], W, settings)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([W], 1.0)
            adam.step()
            advance(1)
    basis = W.detach()
    subject = wrap_module(
        project(network, basis), name=f"{compiled.subject.name} in {len(basis.T)}"
    )
    return replace(compiled, subject=subject, directions=basis)


def _training_rows(
    compiled: Compiled, settings: CompressSettings, seed: int
) -> list[tuple[Tensor, Tensor]]:
    program = compiled.program
    longest = program.indices.length
    lengths = range(max(1, longest // 2), longest + 1)
    rows = [program.draw(settings.pool, length=n, seed=1000 * (seed + 1) + n) for n in lengths]
    return [(some, program.answers(some)) for some in rows]


def _loss(
    network: ProgramNetwork,
    rows: Int[Tensor, "rows pos"],
    answers: Int[Tensor, "rows places"],
    W: Float[Tensor, "directions width"],
    settings: CompressSettings,
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers and squared error of what every component writes."""
    with torch.no_grad():
        wanted = squeezed_run(network, rows, torch.eye(len(W))).written
    found = squeezed_run(network, rows, W)
    entropy = F.cross_entropy(found.logits[:, 1:].flatten(0, 1), answers.flatten())
    pairs = zip(found.written, wanted, strict=True)
    errors = torch.stack([(f - w)[:, 1:].square().sum(-1).mean() for f, w in pairs])
    return entropy + settings.component_weight * errors.mean()


class Interference(NamedTuple):
    """How far directions are from being orthogonal; cosines of pairs of different directions."""

    mean: float
    """Mean |cosine| over all pairs."""
    nearest: float
    """Mean over directions of the highest |cosine| with any other."""
    dimensions: float
    """Mean over directions of the share of a dimension that each has to itself, |w|^2 / sum over
    all of (unit w . w')^2: 1 when orthogonal (Elhage et al. 2022)."""


def interference(directions: Float[Tensor, "directions width"]) -> Interference:
    """Measure how directions share dimensions.

    Raises:
        UserError: fewer than two directions, or one of length zero.
    """
    length = directions.norm(dim=1)
    if len(directions) < 2 or not (length > 0).all():
        raise UserError("Interference is between two directions or more, none of length zero")
    unit = directions / length[:, None]
    cosine = (unit @ unit.T).abs() - torch.eye(len(unit))
    shared = (unit @ directions.T).square().sum(1)
    return Interference(
        mean=(cosine.sum() / (len(unit) * (len(unit) - 1))).item(),
        nearest=cosine.amax(1).mean().item(),
        dimensions=(length.square() / shared).mean().item(),
    )
