"""Where a part starts: from the network's own neurons and heads, and from data.

A random start wastes most of a short run. An MLP's neurons already map its input to its output; a
head's value space already moves what the head moves. What a part has in latents beyond those
starts at data: latent = "this input" -> "what was still missing from the output there".
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.activations.scale import unit_scale
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.subject import MLPWeights

_RIDGE = 1e-2
_FIT_ROWS = 2048


def start_mlp(
    spec: PartSpec,
    weights: MLPWeights,
    x: Float[Tensor, "vectors d_in"],
    y: Float[Tensor, "vectors d_out"],
    *,
    seed: int,
) -> Part:
    """A transcoder that starts as the MLP's own (signed) neurons, the rest from data.

    A gated neuron writes act(g.x)(u.x) d: with the gate open it writes +d when u.x is positive and
    -d when negative, so it makes two latents, g+u -> d and g-u -> -d. Where there are more
    neurons than latents, those that write most on the data are taken. Latents keep the neurons'
    proportions, so neurons without a gate that are relu'd and all there are reproduced exactly.
    """
    part, rows, target = _scaled_part(spec, x, y, seed=seed)
    _fit_offset(part, rows, target)
    residual = target - _offset(part, rows)
    encoder, bias, decoder = _neurons(weights, x[: len(rows)])
    taken = min(len(encoder), spec.n_latents)
    encoder, bias, decoder = encoder[:taken], bias[:taken], decoder[:taken]
    # The strengths of latents from neurons average one, as those of latents from data do.
    length = decoder.norm(dim=1)
    strength = length / (encoder.norm(dim=1) * length).mean().clamp_min(1e-12)
    part.W_enc.data[:taken] = encoder * strength[:, None]
    part.b_enc.data[:taken] = bias * strength * part.spec.input_scale
    part.W_dec.data[:taken] = _unit(decoder)
    _from_data(part, range(taken, spec.n_latents), rows, residual, seed=seed)
    _fit_height(part, rows, residual)
    return part


def start_linear(
    spec: PartSpec,
    W: Float[Tensor, "d_in d_out"],
    x: Float[Tensor, "vectors d_in"],
    y: Float[Tensor, "vectors d_out"],
    *,
    seed: int,
) -> Part:
    """A part that stands in for `y = x @ W`, whose latents each read one head's slice or all of x.

    Encoders are differences from the mean on random tokens; the decoder of such a latent is what
    `W` makes of that same direction, so every latent starts as a rank-one piece of the map it
    replaces. Attention outputs are such a map of z, queries and keys of the stream.
    """
    part, rows, target = _scaled_part(spec, x, y, seed=seed)
    _fit_offset(part, rows, target)
    residual = target - _offset(part, rows)
    generator = torch.Generator().manual_seed(seed)
    per_head = spec.n_latents // spec.heads
    for head in range(spec.heads):
        mine = slice(head * per_head, (head + 1) * per_head)
        slot = slice(head * spec.d_read, (head + 1) * spec.d_read)
        read = rows[:, slot]
        mean = read.mean(0)
        direction = _unit(_differences(read, per_head, generator))
        part.W_enc.data[mine] = direction
        part.b_enc.data[mine] = -(direction @ mean)
        written = direction @ W[slot]
        part.W_dec.data[mine] = _unit(written)
        part.W_enc.data[mine] *= written.norm(dim=1, keepdim=True)
        part.b_enc.data[mine] *= written.norm(dim=1)
    _fit_height(part, rows, residual)
    return part


def _differences(
    rows: Float[Tensor, "rows d"], count: int, generator: torch.Generator
) -> Float[Tensor, "count d"]:
    """Differences of random rows from their mean; after every row was taken once, of two rows."""
    own = rows[each_once(rows, generator)[:count]]
    pairs = torch.randint(len(rows), (2, count - len(own)), generator=generator).to(rows.device)
    return torch.cat([own - rows.mean(0), rows[pairs[0]] - rows[pairs[1]]])


def each_once(
    rows: Float[Tensor, "rows d"], generator: torch.Generator
) -> Int[Tensor, " distinct"]:
    """Places of rows in random order, those left out that equal one before.

    The first block reads the same row wherever the same token stands. Latents that are copies of
    each other fire together, and k copies would write k times too much.
    """
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    probe = torch.randn(rows.shape[1], 2, generator=generator).to(rows)
    seen = (rows[order] @ probe).float()
    seen = (seen / seen.std(0).clamp_min(1e-12) * 1e3).round()
    _, label = seen.unique(dim=0, return_inverse=True)
    first = torch.full((int(label.max()) + 1,), len(rows), device=rows.device)
    at = torch.arange(len(rows), device=rows.device)
    first.scatter_reduce_(0, label, at, reduce="amin")
    return order[first.sort().values]


def _scaled_part(spec: PartSpec, x: Tensor, y: Tensor, *, seed: int) -> tuple[Part, Tensor, Tensor]:
    spec = spec.model_copy(update={"input_scale": unit_scale(x), "output_scale": unit_scale(y)})
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[: 4 * _FIT_ROWS].to(x.device)
    part = Part(spec).to(x.device)
    return part, x[drawn] * spec.input_scale, y[drawn] * spec.output_scale


def _fit_offset(part: Part, rows: Tensor, target: Tensor) -> None:
    """`b_dec` as the mean; with a skip, both by ridge regression in closed form."""
    weight = _huber(target - target.mean(0))
    mean_out = (weight[:, None] * target).sum(0) / weight.sum()
    if part.W_skip is None:
        part.b_dec.data.copy_(mean_out)
        return
    mean_in = (weight[:, None] * rows).sum(0) / weight.sum()
    x, y = rows - mean_in, target - mean_out
    gram = (x * weight[:, None]).T @ x
    gram.diagonal().add_((_RIDGE * gram.diagonal().mean()).clamp_min(1e-6))
    skip = torch.linalg.solve(gram, (x * weight[:, None]).T @ y).T
    part.W_skip.data.copy_(skip)
    part.b_dec.data.copy_(mean_out - skip @ mean_in)


def _offset(part: Part, rows: Tensor) -> Tensor:
    base = part.b_dec.data.expand(len(rows), -1)
    return base if part.W_skip is None else base + rows @ part.W_skip.data.T


def _neurons(weights: MLPWeights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Encoder rows, biases and decoder rows of all signed neurons, those that write most first."""
    W_in, W_out = weights.W_in.float(), weights.W_out.float()
    bias = W_in.new_zeros(len(W_in)) if weights.b_in is None else weights.b_in.float()
    pre = x @ W_in.T + bias
    if weights.W_gate is None:
        encoder, decoder, written = W_in, W_out, pre.clamp_min(0)
    else:
        shift = W_in.new_zeros(len(W_in)) if weights.b_gate is None else weights.b_gate.float()
        gate = x @ weights.W_gate.float().T + shift
        encoder = torch.cat([weights.W_gate.float() + W_in, weights.W_gate.float() - W_in])
        decoder, bias = torch.cat([W_out, -W_out]), torch.cat([shift + bias, shift - bias])
        product = gate.clamp_min(0) * pre
        written = torch.cat([product.clamp_min(0), (-product).clamp_min(0)], dim=1)
    order = (written.mean(0) * decoder.norm(dim=1)).argsort(descending=True)
    return encoder[order], bias[order], decoder[order]


def _from_data(part: Part, latents: range, rows: Tensor, residual: Tensor, *, seed: int) -> None:
    if not len(latents):
        return
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.randint(len(rows), (len(latents),), generator=generator).to(rows.device)
    mean = rows.mean(0)
    direction = _unit(rows[drawn] - mean)
    mine = slice(latents.start, latents.stop)
    part.W_enc.data[mine] = direction
    part.b_enc.data[mine] = -(direction @ mean)
    part.W_dec.data[mine] = _unit(residual[drawn])


def _fit_height(part: Part, rows: Tensor, residual: Tensor) -> None:
    """Scale all activations by the one factor that fits the residual best, and take their mean
    out of `b_dec`, which is the mean of the output already.
    """
    rows, residual = rows[:_FIT_ROWS], residual[:_FIT_ROWS]
    with torch.no_grad():
        written = part(rows / part.spec.input_scale) * part.spec.output_scale - _offset(part, rows)
        weight = _huber(residual)[:, None]
        weight /= weight.sum()
        mean_written, mean_residual = (weight * written).sum(0), (weight * residual).sum(0)
        written, residual = written - mean_written, residual - mean_residual
        spread = (weight * written.square()).sum().clamp_min(1e-12)
        height = ((weight * written * residual).sum() / spread).clamp(min=1e-2)
        part.W_enc *= height
        part.b_enc *= height
        part.b_dec += mean_residual - height * mean_written


def _huber(target: Tensor) -> Tensor:
    """Weight of each row: one up to twice the typical norm, falling as 1/norm beyond."""
    limit = 2 * math.sqrt(target.shape[1])
    return (limit / target.norm(dim=1).clamp_min(1e-12)).clamp(max=1.0)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
