"""Decode a ragged code and differentiate both ends of it, without a dense `[rows, latents]` tensor.

Two differentiable maps, each with gradients that are ragged sums over the active entries:

    picked:  v_e = W_enc[latent_e] . x[row_e] + b_enc[latent_e]     (values known from selection)
    written: y_r = sum over entries e of row r of v_e W_dec[latent_e]

Whatever lies between them (a relu, a router's weight, a product of two picks) is elementwise on
the entries and is left to autograd.
"""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import ByLatent, Support
from unweave.dictionaries.kernels.deferred import putting_off_for
from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.listed import listed_over_rows, lists_rows
from unweave.dictionaries.kernels.native import calls as native
from unweave.dictionaries.kernels.rounding import rounded

with warnings.catch_warnings():
    # torch says once per process that CSR tensors are young; said here, it is not said to users.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), size=(1, 1))


def write(
    value: Float[Tensor, " active"],
    W_dec: Float[Tensor, "latents d_out"],
    support: Support,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "rows d_out"]:
    """Sum of the active decoder rows weighted by their values; differentiable in both.

    With `dtype` bfloat16 products are taken of rounded rows and gradients, where that is faster.
    """
    return _Write.apply(value, W_dec, support, dtype)


def pick(
    known: Float[Tensor, " active"],
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "latents d_in"],
    b_enc: Float[Tensor, " latents"],
    support: Support,
    low: Float[Tensor, "rows d_in"] | None = None,
) -> Float[Tensor, " active"]:
    """Pre-activations at the support, differentiable in x, W_enc and b_enc.

    `known` holds their values, which whoever selected the support has already computed; `low` the
    rounded x that they were computed from, if it was, for the gradient of W_enc.
    """
    return _Pick.apply(known, x, W_enc, b_enc, support, low)


def inner(
    left: Float[Tensor, "rows d"], right: Float[Tensor, "latents d"], support: Support
) -> Float[Tensor, " active"]:
    """`left[row] . right[latent]` at every entry: a product sampled at the support."""
    if gpu.able(left, right) or gpu.elsewhere(left):
        return gpu.inner(left, right, support.latent, support.row, support.offsets)
    if native.able(left, right):
        return native.inner(left, right, support.latent, support.offsets)
    pattern = torch.sparse_csr_tensor(
        support.offsets,
        support.latent,
        left.new_zeros(len(support.latent)),
        size=(support.rows, support.n_latents),
        # Latents need not ascend within a row: the kernel visits entries as they come.
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()


def over_rows(
    weight: Float[Tensor, " active"], rows: Float[Tensor, "rows d"], support: Support
) -> Float[Tensor, "latents d"]:
    """For each latent the sum of `rows` in which it is active, weighted: a matrix's gradient."""
    return bagged(weight, rows, support.by_latent)


def bagged(
    weight: Float[Tensor, " active"], rows: Float[Tensor, "rows d"], at: ByLatent
) -> Float[Tensor, "latents d"]:
    """`over_rows` for entries that have been put in order, whatever rows they name."""
    if gpu.able(rows, weight):
        return gpu.bags(rows, at.row, weight, at.bounds, at.order)
    if native.able(rows, weight):
        return native.bags(rows, at.row, weight, at.bounds, at.order)
    weights = weight[at.order]
    return F.embedding_bag(at.row, rows, at.bounds[:-1], per_sample_weights=weights, mode="sum")


def gradient_of_rows(
    weight: Float[Tensor, " active"],
    rows: Float[Tensor, "rows d"],
    support: Support,
    *,
    listed: bool,
    put_off: Callable[[Tensor, Tensor, Support], None] | None = None,
) -> Float[Tensor, "latents d"] | None:
    """`over_rows` as a matrix's gradient; with `listed` of the active latents alone (`listed`).

    `put_off` is told what to sum up later instead (`deferred`).
    """
    if put_off is not None:
        put_off(weight, rows, support)
        return None
    found = listed_over_rows(weight, rows, support) if listed else None
    return over_rows(weight, rows, support) if found is None else found


def over_latents(
    weight: Float[Tensor, " active"], matrix: Float[Tensor, "latents d"], support: Support
) -> Float[Tensor, "rows d"]:
    """For each row the sum of the matrix's active rows, weighted."""
    if gpu.able(matrix, weight):
        return gpu.bags(matrix, support.latent, weight, support.offsets)
    if native.able(matrix, weight):
        return native.bags(matrix, support.latent, weight, support.offsets)
    return F.embedding_bag(
        support.latent, matrix, support.offsets[:-1], per_sample_weights=weight, mode="sum"
    )


def total(weight: Float[Tensor, " active"], support: Support) -> Float[Tensor, " latents"]:
    """Sum of each latent's weights."""
    if native.able(weight):
        return native.totals(weight, native.Sorted(*support.by_latent), support.n_latents)
    if gpu.elsewhere(weight):
        return gpu.totals(weight[support.by_latent.order], support.by_latent.bounds)
    return weight.new_zeros(support.n_latents).index_add_(0, support.latent, weight)


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, W_dec, support, dtype):  # type: ignore[no-untyped-def]
        matrix = rounded(W_dec, dtype)
        ctx.save_for_backward(value, matrix)
        ctx.support, ctx.listed, ctx.put_off = support, lists_rows(W_dec), putting_off_for(W_dec)
        return over_latents(value, matrix, support)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        value, matrix = ctx.saved_tensors
        g = g.to(matrix.dtype).contiguous()
        to_value = inner(g, matrix, ctx.support) if ctx.needs_input_grad[0] else None
        to_W_dec = None
        if ctx.needs_input_grad[1]:
            how = {"listed": ctx.listed, "put_off": ctx.put_off}
            to_W_dec = gradient_of_rows(value, g, ctx.support, **how)
        return to_value, to_W_dec, None, None


class _Pick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, known, x, W_enc, b_enc, support, low):  # type: ignore[no-untyped-def]
        rows = x if low is None or not (native.able(low) or gpu.able(low)) else low
        ctx.save_for_backward(rows, W_enc)
        ctx.support, ctx.listed, ctx.put_off = support, lists_rows(W_enc), putting_off_for(W_enc)
        return known.clone()

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        rows, W_enc = ctx.saved_tensors
        _, want_x, want_W, want_b, *_ = ctx.needs_input_grad
        support = ctx.support
        to_x = over_latents(g, W_enc, support) if want_x else None
        how = {"listed": ctx.listed, "put_off": ctx.put_off}
        to_W = gradient_of_rows(g, rows, support, **how) if want_W else None
        to_b = total(g, support) if want_b else None
        return None, to_x, to_W, to_b, None, None
