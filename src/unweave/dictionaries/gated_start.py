"""Gated parts that start as a gated MLP's own signed neurons (`glu_start`), the rest from data."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.activations.scale import unit_scale
from unweave.dictionaries.glu_start import refuse_other_gates, signed_neurons
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.subject import MLPWeights

_ROWS = 4096
"""Rows on which neurons are ranked and the offset is set."""


@torch.no_grad()
def start_gated(
    spec: PartSpec,
    weights: MLPWeights,
    x: Float[Tensor, "vectors d_in"],
    y: Float[Tensor, "vectors d_out"],
    *,
    seed: int,
) -> Part:
    """A gated part whose latents are the signed neurons that write most on `x`.

    With two latents for every neuron, all of them active, it is the MLP to rounding. Latents beyond
    them start behind an open gate: "this input" -> "what was still missing there". The offset is
    the MLP's own plus the mean of what is left.

    Raises:
        UserError: an MLP that is not gated by SiLU.
    """
    refuse_other_gates(spec.name, weights)
    spec = spec.model_copy(update={"input_scale": unit_scale(x), "output_scale": unit_scale(y)})
    part = Part(spec).to(x.device)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[:_ROWS].to(x.device)
    rows, target = x[drawn].float() * spec.input_scale, y[drawn].float() * spec.output_scale
    neurons = signed_neurons(
        weights, rows, read=spec.input_scale, write=spec.output_scale, count=spec.n_latents
    )
    taken = slice(0, len(neurons[0]))
    names = ("W_gate", "b_gate", "W_enc", "b_enc", "W_dec")
    for name, found in zip(names, neurons, strict=True):
        getattr(part, name)[taken] = found
    if weights.b_out is not None:
        part.b_dec.copy_(weights.b_out * spec.output_scale)
    if len(neurons[0]) < spec.n_latents:
        _from_data(part, slice(len(neurons[0]), None), rows, target, generator)
    part.b_dec += (target - part.run_scaled(rows)[0]).mean(0)
    return part


def _from_data(
    part: Part, new: slice, rows: Tensor, target: Tensor, generator: torch.Generator
) -> None:
    """Latents that read a drawn input's direction and write what was missing there."""
    at = torch.randint(len(rows), (len(part.W_dec[new]),), generator=generator).to(rows.device)
    middle = rows.mean(0)
    missing = F.normalize((target - part.run_scaled(rows)[0])[at], dim=1)
    towards = F.normalize(rows[at] - middle, dim=1)
    assert part.b_gate is not None
    part.W_enc[new], part.b_enc[new] = towards, -(towards @ middle)
    part.b_gate[new] = 1.0  # silu(1) is hardly a gate, but one that can learn to shut
    part.W_dec[new] = missing
