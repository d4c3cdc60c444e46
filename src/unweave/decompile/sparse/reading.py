"""Strengths times edges, on the processor's fast path, forwards and backwards."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class ReadEdges(torch.autograd.Function):
    """sum over latents of a V[w, :] + V[token, :], with the gradient of masked edges left out.

    Products are taken in `dtype`; sums over rows of the table's gradient come back in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        on: Float[Tensor, "rows latents"],
        token: Int[Tensor, " rows"],
        table: Float[Tensor, "writers readers"],
        kept: Bool[Tensor, "writers readers"] | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "rows readers"]:
        """The sums, in float32."""
        vocab = len(table) - on.shape[1]
        a, v = on.to(dtype), table[vocab:].to(dtype)
        ctx.save_for_backward(a, v, token)
        ctx.kept, ctx.vocab, ctx.shape = kept, vocab, table.shape
        return torch.mm(a, v).float() + table[:vocab][token]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of strengths and table."""
        a, v, token = ctx.saved_tensors
        grad = grads[0].contiguous()
        g = grad.to(a.dtype)
        table = torch.empty(ctx.shape)
        table[: ctx.vocab].zero_().index_add_(0, token, grad)
        table[ctx.vocab :] = torch.mm(a.T, g)
        if ctx.kept is not None:
            table *= ctx.kept
        on = torch.mm(g, v.T).float() if ctx.needs_input_grad[0] else None
        return on, None, table, None, None
