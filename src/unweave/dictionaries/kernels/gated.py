"""Gated latents, z = silu(g.x) relu(u.x): the k of a row that write most, and their gradients.

As in `kernels.sparse` only the two products of the encoder are dense, a tile of rows at a time;
decoding and every gradient is a ragged sum over what was chosen.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu

from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.ragged import inner, over_latents, over_rows, total
from unweave.dictionaries.kernels.sparse import TILE_ROWS, Code, decode, narrow


class GatedCode(NamedTuple):
    """The k chosen latents of each row, and what they were multiplied of."""

    latent: Int[Tensor, "rows k"]
    """Which latents were chosen."""
    gate: Float[Tensor, "rows k"]
    """g.x + b_gate."""
    up: Float[Tensor, "rows k"]
    """u.x + b_enc."""

    @property
    def value(self) -> Float[Tensor, "rows k"]:
        """Activations; a little below zero where the gate is shut."""
        return silu(self.gate) * self.up.relu()


def select_gated(
    x: Float[Tensor, "rows d_in"],
    gates: tuple[Float[Tensor, "latents d_in"], Float[Tensor, " latents"]],
    ups: tuple[Float[Tensor, "latents d_in"], Float[Tensor, " latents"]],
    k: int,
    *,
    dtype: torch.dtype | None = None,
) -> GatedCode:
    """Keep the k products largest in size of each row; `gates` and `ups` are weights and biases.

    By size, because a neuron behind a shut gate writes a little the other way. The two products
    are taken in `dtype`, by default that of the input.
    """
    dtype = dtype or x.dtype
    read, found = x.to(dtype), []
    W_gate, W_enc = gates[0].to(dtype), ups[0].to(dtype)
    for start in range(0, len(x), TILE_ROWS):
        tile = read[start : start + TILE_ROWS]
        gate = (tile @ W_gate.T).to(x.dtype) + gates[1]
        up = (tile @ W_enc.T).to(x.dtype) + ups[1]
        value = silu(gate).mul_(up.relu())
        if native.able(value):
            latent, _ = native.largest(value, k, by_size=True)
        else:
            latent = value.abs().topk(k, dim=1, sorted=False).indices
        found.append(GatedCode(latent, gate.gather(1, latent), up.gather(1, latent)))
    if not found:
        nothing = x.new_empty(0, k)
        return GatedCode(nothing.long(), nothing, nothing)
    return GatedCode(*(torch.cat(column) for column in zip(*found, strict=True)))


class GatedPart(torch.autograd.Function):
    """`W_dec^T topk(silu(W_gate x + b_gate) relu(W_enc x + b_enc))` with sparse gradients."""

    @staticmethod
    def forward(ctx, x, W_gate, b_gate, W_enc, b_enc, W_dec, k, dtype=None):  # type: ignore[no-untyped-def]
        """Rows in, rows out; remembers only the code and the input.

        With `dtype` bfloat16, products are taken of rounded rows and matrices, and summed in
        float32.
        """
        W_gate, W_enc, W_dec = (narrow(W, dtype) for W in (W_gate, W_enc, W_dec))
        code = select_gated(x, (W_gate, b_gate), (W_enc, b_enc), k, dtype=dtype)
        value, low = code.value, x.to(W_enc.dtype)
        ctx.save_for_backward(low, W_gate, W_enc, W_dec, code.latent, code.gate, code.up)
        ctx.mark_non_differentiable(code.latent)
        return decode(Code(code.latent, value), W_dec), code.latent, value

    @staticmethod
    def backward(ctx, g, _latent, value_grad_direct):  # type: ignore[no-untyped-def]
        """Gradients of the output and, where a loss reads them, of the activations themselves."""
        x, W_gate, W_enc, W_dec, latent, gate, up = ctx.saved_tensors
        code, g = GatedCode(latent, gate, up), g.to(W_dec.dtype).contiguous()
        support = Code(latent, gate).support(len(W_dec))
        to_value = inner(g, W_dec, support).view_as(gate)
        if value_grad_direct is not None:
            to_value = to_value + value_grad_direct
        share = gate.sigmoid()
        slope = share * (1 + gate * (1 - share))
        to_gate = (to_value * slope * up.relu()).reshape(-1)
        to_up = (to_value * share * gate * (up > 0)).reshape(-1)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = over_latents(to_gate, W_gate, support) + over_latents(to_up, W_enc, support)
        return (
            to_x,
            over_rows(to_gate, x, support),
            total(to_gate, support),
            over_rows(to_up, x, support),
            total(to_up, support),
            over_rows(code.value.reshape(-1), g, support),
            None,
            None,
        )
