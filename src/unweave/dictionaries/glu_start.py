"""Gated latents that start as a gated MLP's own neurons.

A neuron writes silu(g.x) (u.x) d. With the signs of u.x apart it makes two latents,

    silu(g.x) relu(u.x) d     and     silu(g.x) relu(-u.x) (-d)

which a dictionary with a `GLU` encoder holds exactly. silu(g.x) is a little below zero where the
gate is shut, so the sum of all signed neurons is the MLP itself only where latents keep their signs
(`AbsTopK`); `TopK` and `ReLU` leave that little out.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.activations.scale import unit_scale
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.encoder.glu import GLUEncoder
from unweave.errors import UserError
from unweave.subject import MLPWeights

_ROWS = 4096
"""Rows on which neurons are ranked and the offset is set."""


@torch.no_grad()
def start_glu_(
    dictionary: Dictionary,
    weights: MLPWeights,
    x: Float[Tensor, "vectors d_in"],
    y: Float[Tensor, "vectors d_out"],
    *,
    seed: int = 0,
) -> None:
    """Set a transcoder's weights and scales to the MLP's signed neurons, from raw vectors.

    Where there are more signed neurons (2 d_mlp) than latents, those that write most on `x` are
    taken, most first; where there are fewer, the other latents start at data behind an open gate:
    "this input" -> "what was still missing there". Latents are in units of what they write, which
    is what choosing the strongest needs. The offset is the MLP's own plus the mean of what is left.

    Raises:
        UserError: an encoder without gates, an MLP that is not gated by SiLU, or of other widths.
    """
    encoder = dictionary.encoder
    _check(dictionary, weights)
    dictionary.rescale_([unit_scale(x)], [unit_scale(y)])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(x), generator=generator)[:_ROWS]
    scaled = x[drawn].to(dictionary.W_dec) * dictionary.input_scale
    target = y[drawn].to(dictionary.W_dec) * dictionary.output_scale
    gate, gate_bias, up, up_bias, down = signed_neurons(
        weights,
        scaled,
        read=float(dictionary.input_scale[0]),
        write=float(dictionary.output_scale[0]),
        count=dictionary.n_latents,
    )
    taken = len(gate)
    _fill(encoder, slice(0, taken), gate, gate_bias, up, up_bias)
    dictionary.W_dec[:taken] = down
    offset = torch.zeros_like(dictionary.b_dec) if weights.b_out is None else weights.b_out
    dictionary.b_dec.copy_(offset.to(dictionary.b_dec) * dictionary.output_scale)
    if taken < dictionary.n_latents:
        _fill_from_data(dictionary, slice(taken, None), scaled, target, generator)
    dictionary.b_dec += (target - dictionary.run(scaled).y).mean(0)


def _fill_from_data(
    dictionary: Dictionary,
    new: slice,
    scaled: Tensor,
    target: Tensor,
    generator: torch.Generator,
) -> None:
    """Latents that read a drawn input's direction and write what was missing there."""
    rest = len(dictionary.W_dec[new])
    at = torch.randint(len(scaled), (rest,), generator=generator)
    middle = scaled.mean(0)
    towards = F.normalize(scaled[at] - middle, dim=1)
    missing = F.normalize((target - dictionary.run(scaled).y)[at], dim=1)
    open_bias = torch.ones(rest)  # silu(1) is hardly a gate, but one that can learn to shut
    gate = torch.zeros_like(towards)
    _fill(dictionary.encoder, new, gate, open_bias, towards, -(towards @ middle))
    dictionary.W_dec[new] = missing


def signed_neurons(
    weights: MLPWeights,
    scaled: Float[Tensor, "rows d_in"],
    *,
    read: float,
    write: float,
    count: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gates, gate biases, ups, up biases and unit decoder rows of the `count` signed neurons that
    write most on `scaled`, fewer where there are fewer.

    Inputs were multiplied by `read`, outputs are to be by `write`. The decoder's length is moved
    into the up row, so that a latent is as large as what it writes.
    """
    assert weights.W_gate is not None
    W_gate, W_up, W_down = (w.to(scaled) for w in (weights.W_gate, weights.W_in, weights.W_out))
    b_gate, b_up = (_bias(b, W_up) for b in (weights.b_gate, weights.b_in))
    length = W_down.norm(dim=1, keepdim=True) * write
    gate, up, down = W_gate / read, W_up / read * length, F.normalize(W_down, dim=1)
    b_up = b_up * length[:, 0]
    open_ = F.silu(scaled @ gate.T + b_gate)
    pre = scaled @ up.T + b_up
    written = torch.cat([(open_ * F.relu(s * pre)).abs().mean(0) for s in (1, -1)])
    most = written.argsort(descending=True, stable=True)[:count]
    return (
        torch.cat([gate, gate])[most],
        torch.cat([b_gate, b_gate])[most],
        torch.cat([up, -up])[most],
        torch.cat([b_up, -b_up])[most],
        torch.cat([down, -down])[most],
    )


def _fill(
    encoder: GLUEncoder,
    where: slice,
    gate: Tensor,
    gate_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
) -> None:
    encoder.W_gate[where], encoder.b_gate[where] = gate, gate_bias
    encoder.W_enc[where], encoder.b_enc[where] = up, up_bias


def _bias(bias: Tensor | None, rows: Tensor) -> Tensor:
    return rows.new_zeros(len(rows)) if bias is None else bias.to(rows)


def refuse_other_gates(name: str, weights: MLPWeights) -> None:
    """Raise a UserError unless the MLP's neurons are gated by SiLU, as gated latents are."""
    if weights.W_gate is None or weights.activation not in ("silu", "swish"):
        raise UserError(
            f"{name} cannot start from this MLP, which is "
            f"{'not gated' if weights.W_gate is None else f'gated by {weights.activation}'}: "
            "glu latents are gated by silu"
        )


def _check(dictionary: Dictionary, weights: MLPWeights) -> None:
    spec = dictionary.spec
    if not isinstance(dictionary.encoder, GLUEncoder):
        raise UserError(
            f"{spec.name} has a {spec.encoder.kind} encoder: neurons with gates need glu"
        )
    refuse_other_gates(spec.name, weights)
    wide = (weights.W_in.shape[1], weights.W_out.shape[1])
    if len(spec.reads) != 1 or len(spec.writes) != 1 or (spec.d_in, spec.d_out) != wide:
        raise UserError(
            f"{spec.name} must read one site of width {wide[0]} and write one of width {wide[1]}, "
            "as the MLP does"
        )
    if spec.skip:
        raise UserError(
            f"{spec.name} has a skip: start it without, the neurons leave nothing to it"
        )
