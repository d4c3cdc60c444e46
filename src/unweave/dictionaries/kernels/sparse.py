"""Select, decode and differentiate with k latents a row, without a dense `[rows, latents]` tensor.

A dense dictionary costs ten `d * n` multiply-adds a vector for a training step. Only two of them,
the encoder, need a matrix product: everything after the selection touches k of the n latents, and
each step here is one ragged sum or one sampled product over those (`kernels.ragged`).

A latent may read the whole input (`heads = 1`) or one head's slice of it (`heads > 1`): the latents
are then laid out head by head, and `W_enc` holds only the slice that each latent reads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import Support
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.ragged import bagged, inner, over_latents, total

TILE_ROWS = 512
"""Rows whose pre-activations exist at once: 512 x 4608 floats stay in the last-level cache."""


def product_dtype() -> torch.dtype:
    """Number format of the encoder's product: bfloat16 where the processor multiplies it.

    There it is three to four times as fast as float32, and training does not notice; on a
    processor that must emulate it, eight times slower. What is measured is taken in float32: no
    number may depend on the processor.
    """
    able = torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return torch.bfloat16 if able else torch.float32


class Code(NamedTuple):
    """The k selected latents of each row."""

    latent: Int[Tensor, "rows k"]
    """Which latents were selected."""
    value: Float[Tensor, "rows k"]
    """Their activations, never negative; zero where fewer than k were positive."""

    def support(self, n_latents: int) -> Support:
        """Who was selected where, as ragged sums want it."""
        return Support.from_topk(self.latent, n_latents)


def select_topk(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "latents d_read"],
    b_enc: Float[Tensor, " latents"],
    k: int,
    *,
    heads: int = 1,
    dtype: torch.dtype | None = None,
) -> Code:
    """Keep the k largest of `relu(W_enc x + b_enc)` in each row (Gao et al. 2024, TopK).

    The product is taken in `dtype`, by default that of the input; training asks `product_dtype`.
    """
    rows, n = x.shape[0], W_enc.shape[0]
    dtype = dtype or x.dtype
    read, encoder = x.to(dtype), W_enc.to(dtype)
    if heads == 1 and (found := gpu.largest_products(read, encoder, b_enc, k)) is not None:
        score = found.score.to(x.dtype).clamp_min_(0)
        return Code(found.support.latent.view(rows, k), score.view(rows, k))
    latent = torch.empty(rows, k, dtype=torch.long, device=x.device)
    value = torch.empty(rows, k, dtype=x.dtype, device=x.device)
    pre = torch.empty(min(rows, TILE_ROWS), n, dtype=x.dtype, device=x.device)
    for start in range(0, rows, TILE_ROWS):
        tile = slice(start, min(start + TILE_ROWS, rows))
        out = pre[: tile.stop - tile.start]
        _encode_into(out, read[tile], encoder, b_enc, heads)
        if native.able(out):
            latent[tile], value[tile] = native.largest(out, k, by_size=False)
        else:
            value[tile], latent[tile] = out.topk(k, dim=1, sorted=False)
    return Code(latent, value.clamp_min_(0))


def narrow(matrix: Float[Tensor, "n d"], dtype: torch.dtype | None) -> Float[Tensor, "n d"]:
    """The matrix in bfloat16, where that is asked for and the compiled kernels can read it.

    It is rounded anew in every pass: torch's fused Adam changes weights without counting that
    (`kernels.rounding` relies on the count).
    """
    able = dtype == torch.bfloat16 and matrix.dtype == torch.float32 and native.able(matrix)
    return matrix.to(torch.bfloat16) if able else matrix


def _encode_into(out: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, heads: int) -> None:
    if heads == 1 and x.dtype == out.dtype:
        torch.addmm(b_enc, x, W_enc.T, out=out)
        return
    per_head, d_head = W_enc.shape[0] // heads, W_enc.shape[1]
    for head in range(heads):
        mine = slice(head * per_head, (head + 1) * per_head)
        slice_of_x = x[:, head * d_head : (head + 1) * d_head]
        if x.dtype == out.dtype:
            torch.mm(slice_of_x, W_enc[mine].T, out=out[:, mine])
        else:
            out[:, mine] = slice_of_x @ W_enc[mine].T
    out += b_enc


def decode(code: Code, W_dec: Float[Tensor, "latents d_out"]) -> Float[Tensor, "rows d_out"]:
    """Sum the decoder rows of the selected latents, weighted by their activations."""
    return over_latents(code.value.reshape(-1), W_dec, code.support(len(W_dec)))


def value_gradient(
    code: Code, g: Float[Tensor, "rows d_out"], W_dec: Float[Tensor, "latents d_out"]
) -> Float[Tensor, "rows k"]:
    """Gradient of the selected activations, `g . W_dec[latent]`, zero where the relu was shut."""
    return inner(g, W_dec, code.support(len(W_dec))).view_as(code.value) * (code.value > 0)


class WeightGradients(NamedTuple):
    """Gradients of a sparse part's matrices, dense in shape but summed over few rows each."""

    W_enc: Float[Tensor, "latents d_read"]
    b_enc: Float[Tensor, " latents"]
    W_dec: Float[Tensor, "latents d_out"]


def weight_gradients(
    code: Code,
    value_grad: Float[Tensor, "rows k"],
    x: Float[Tensor, "rows d_in"],
    g: Float[Tensor, "rows d_out"],
    n_latents: int,
    *,
    heads: int = 1,
) -> WeightGradients:
    """Both matrices' gradients as ragged sums over the rows in which each latent was selected."""
    support, weight = code.support(n_latents), value_grad.reshape(-1)
    at = support.by_latent
    read, row = x, at.row
    if heads > 1:  # a row for every head, of which a latent reads its own
        read = x.reshape(len(x) * heads, x.shape[1] // heads)
        head = torch.arange(n_latents, device=x.device) // (n_latents // heads)
        row = row * heads + head.repeat_interleave(at.bounds.diff())
    return WeightGradients(
        bagged(weight, read, at._replace(row=row)),
        total(weight, support),
        bagged(code.value.reshape(-1), g, at),
    )


def input_gradient(
    code: Code,
    value_grad: Float[Tensor, "rows k"],
    W_enc: Float[Tensor, "latents d_read"],
    *,
    heads: int = 1,
) -> Float[Tensor, "rows d_in"]:
    """Gradient of the input: the selected encoder rows, weighted by their latents' gradients."""
    if heads == 1:
        return over_latents(value_grad.reshape(-1), W_enc, code.support(len(W_enc)))
    rows = len(code.latent)
    latent, order = code.latent.sort(dim=1)
    row = torch.arange(rows, device=latent.device)[:, None]
    slot = (row * heads + latent // (len(W_enc) // heads)).reshape(-1)
    ends = torch.arange(rows * heads + 1, device=latent.device)
    slots = Support(torch.searchsorted(slot, ends), latent.reshape(-1), len(W_enc))
    read = over_latents(value_grad.gather(1, order).reshape(-1), W_enc, slots)
    return read.view(rows, heads * W_enc.shape[1])


class SparsePart(torch.autograd.Function):
    """`W_dec^T topk(relu(W_enc x + b_enc))` with the sparse gradients above."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, W_dec, k, heads, dtype=None):  # type: ignore[no-untyped-def]
        """Rows in, rows out; remembers only the code and the input.

        With `dtype` bfloat16, products are taken of rounded rows and matrices, and summed in
        float32.
        """
        encoder, decoder = narrow(W_enc, dtype), narrow(W_dec, dtype)
        code = select_topk(x, encoder, b_enc, k, heads=heads, dtype=dtype)
        ctx.save_for_backward(x.to(encoder.dtype), encoder, decoder, code.latent, code.value)
        ctx.heads = heads
        ctx.mark_non_differentiable(code.latent)
        return decode(code, decoder), code.latent, code.value

    @staticmethod
    def backward(ctx, g, _latent, value_grad_direct):  # type: ignore[no-untyped-def]
        """Gradients of the output and, where a loss reads them, of the activations themselves."""
        x, encoder, decoder, latent, value = ctx.saved_tensors
        code, g = Code(latent, value), g.to(decoder.dtype).contiguous()
        value_grad = value_gradient(code, g, decoder)
        if value_grad_direct is not None:
            value_grad = value_grad + value_grad_direct * (value > 0)
        weights = weight_gradients(code, value_grad, x, g, len(encoder), heads=ctx.heads)
        dx = input_gradient(code, value_grad, encoder, heads=ctx.heads)
        return dx, weights.W_enc, weights.b_enc, weights.W_dec, None, None, None
