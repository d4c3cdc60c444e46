"""Select, decode and differentiate with k latents a row, without a dense `[rows, latents]` tensor.

A dense dictionary costs ten `d * n` multiply-adds a vector for a training step. Only two of them,
the encoder, need a matrix product: everything after the selection touches k of the n latents, and
each step here is one ragged sum (`embedding_bag`) or one sampled product over those.

A latent may read the whole input (`heads = 1`) or one head's slice of it (`heads > 1`): the latents
are then laid out head by head, and `W_enc` holds only the slice that each latent reads.
"""

import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.kernels.gpu import calls as gpu

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


with warnings.catch_warnings():
    # torch says once per process that CSR tensors are young; said here, it is not said to users.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), size=(1, 1))


class Code(NamedTuple):
    """The k selected latents of each row."""

    latent: Int[Tensor, "rows k"]
    """Which latents were selected."""
    value: Float[Tensor, "rows k"]
    """Their activations, never negative; zero where fewer than k were positive."""


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
        top = out.topk(k, dim=1, sorted=False)
        value[tile] = top.values
        latent[tile] = top.indices
    return Code(latent, value.clamp_min_(0))


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
    return F.embedding_bag(code.latent, W_dec, per_sample_weights=code.value, mode="sum")


def value_gradient(
    code: Code, g: Float[Tensor, "rows d_out"], W_dec: Float[Tensor, "latents d_out"]
) -> Float[Tensor, "rows k"]:
    """Gradient of the selected activations, `g . W_dec[latent]`, zero where the relu was shut.

    A product sampled at the selected places: no row of `W_dec` is copied.
    """
    rows, k = code.latent.shape
    if gpu.elsewhere(g):
        row = torch.arange(rows, device=g.device).repeat_interleave(k)
        offsets = torch.arange(0, rows * k + 1, k, device=g.device)
        found = gpu.inner(g, W_dec, code.latent.reshape(-1), row, offsets)
        return found.view(rows, k).mul_(code.value > 0)
    latent, order = code.latent.sort(dim=1)
    pattern = torch.sparse_csr_tensor(
        torch.arange(0, rows * k + 1, k),
        latent.reshape(-1),
        torch.zeros(rows * k, dtype=g.dtype),
        size=(rows, W_dec.shape[0]),
        check_invariants=False,
    )
    sampled = torch.sparse.sampled_addmm(pattern, g, W_dec.T, beta=0.0).values().view(rows, k)
    gradient = torch.empty_like(sampled).scatter_(1, order, sampled)
    return gradient.mul_(code.value > 0)


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
    rows, k = code.latent.shape
    latent, order = code.latent.reshape(-1).sort(stable=True)
    row = order // k
    bounds = torch.searchsorted(latent, torch.arange(n_latents + 1, device=latent.device))
    starts = bounds[:-1]
    weight = value_grad.reshape(-1)[order]
    d_read = x.shape[1] // heads
    read_row = row if heads == 1 else row * heads + latent // (n_latents // heads)
    W_enc = F.embedding_bag(
        read_row, x.reshape(rows * heads, d_read), starts, per_sample_weights=weight, mode="sum"
    )
    W_dec = F.embedding_bag(
        row, g, starts, per_sample_weights=code.value.reshape(-1)[order], mode="sum"
    )
    if gpu.elsewhere(g):
        return WeightGradients(W_enc, gpu.totals(weight, bounds), W_dec)
    b_enc = g.new_zeros(n_latents).index_add_(0, latent, weight)
    return WeightGradients(W_enc, b_enc, W_dec)


def input_gradient(
    code: Code,
    value_grad: Float[Tensor, "rows k"],
    W_enc: Float[Tensor, "latents d_read"],
    *,
    heads: int = 1,
) -> Float[Tensor, "rows d_in"]:
    """Gradient of the input: the selected encoder rows, weighted by their latents' gradients."""
    if heads == 1:
        return F.embedding_bag(code.latent, W_enc, per_sample_weights=value_grad, mode="sum")
    rows = len(code.latent)
    latent, order = code.latent.sort(dim=1)
    device = latent.device
    row = torch.arange(rows, device=device)[:, None]
    slot = row * heads + latent // (W_enc.shape[0] // heads)
    starts = torch.searchsorted(slot.reshape(-1), torch.arange(rows * heads, device=device))
    weight = value_grad.gather(1, order).reshape(-1)
    bags = F.embedding_bag(latent.reshape(-1), W_enc, starts, per_sample_weights=weight, mode="sum")
    return bags.view(rows, heads * W_enc.shape[1])


class SparsePart(torch.autograd.Function):
    """`W_dec^T topk(relu(W_enc x + b_enc))` with the sparse gradients above."""

    @staticmethod
    def forward(ctx, x, W_enc, b_enc, W_dec, k, heads, dtype=None):  # type: ignore[no-untyped-def]
        """Rows in, rows out; remembers only the code and the input."""
        code = select_topk(x, W_enc, b_enc, k, heads=heads, dtype=dtype)
        ctx.save_for_backward(x, W_enc, W_dec, code.latent, code.value)
        ctx.heads = heads
        ctx.mark_non_differentiable(code.latent)
        return decode(code, W_dec), code.latent, code.value

    @staticmethod
    def backward(ctx, g, _latent, value_grad_direct):  # type: ignore[no-untyped-def]
        """Gradients of the output and, where a loss reads them, of the activations themselves."""
        x, W_enc, W_dec, latent, value = ctx.saved_tensors
        code, g = Code(latent, value), g.contiguous()
        value_grad = value_gradient(code, g, W_dec)
        if value_grad_direct is not None:
            value_grad = value_grad + value_grad_direct * (value > 0)
        weights = weight_gradients(code, value_grad, x, g, W_enc.shape[0], heads=ctx.heads)
        dx = input_gradient(code, value_grad, W_enc, heads=ctx.heads)
        return dx, weights.W_enc, weights.b_enc, weights.W_dec, None, None, None
