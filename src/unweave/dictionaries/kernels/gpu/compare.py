"""Decode a row, compare it with its target and take the error back, while it is in registers.

A program has one row. What it decodes, the error and the products of the error with the decoder
rows it has just read are each written once; output and error are not read again.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import on_device_of
from unweave.dictionaries.kernels.native.calls import Fitted

HELD = 8192
"""Numbers of a matrix that a program holds at once."""
WIDEST = 8192
"""Widest row that is held whole."""


def decode_and_compare(
    matrix: Float[Tensor, "latents d"],
    latent: Int[Tensor, " active"],
    value: Float[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
    bias: Float[Tensor, " d"],
    target: Float[Tensor, "rows d"],
    scale: float,
) -> Fitted:
    """`y_r = bias + sum of value_e matrix[latent_e]` over row r's entries, and what follows."""
    matrix, value, target = matrix.contiguous(), value.contiguous(), target.contiguous()
    rows, d = target.shape
    found = Fitted(
        torch.empty_like(target),
        torch.empty(rows, d, dtype=matrix.dtype, device=target.device),
        torch.empty_like(value),
        torch.empty(rows, dtype=torch.float32, device=target.device),
        torch.zeros(1, d, dtype=torch.float32, device=target.device),
    )
    if not rows:
        return found
    width = triton.next_power_of_2(d)
    with on_device_of(target):
        _compare[(rows,)](
            matrix, latent.contiguous(), value, offsets, bias.contiguous(), target, *found[:4],
            scale, d, ENTRIES=max(1, HELD // width), WIDTH=width,
            num_warps=4 if width <= 2048 else 8,
        )  # fmt: skip
    return found._replace(to_bias=found.error.sum(0, keepdim=True, dtype=torch.float32))


@triton.jit
@no_type_check
def _compare(
    matrix, latent, value, offsets, bias, target, y, error, to_value, square, scale, d,
    ENTRIES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    first, end = tl.load(offsets + row), tl.load(offsets + row + 1)
    column = tl.arange(0, WIDTH)
    inside = column < d
    total = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    for start in range(first, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        by = tl.load(value + entry, mask=live, other=0.0).to(tl.float32)
        at = tl.load(latent + entry, mask=live, other=0).to(tl.int64)[:, None] * d
        both = live[:, None] & inside[None, :]
        rows = tl.load(matrix + at + column[None, :], mask=both, other=0.0).to(tl.float32)
        total += tl.sum(by[:, None] * rows, axis=0)
    tl.store(y + row * d + column, total, mask=inside)
    gap = total - tl.load(target + row * d + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(square + row, tl.sum(gap * gap, axis=0))
    # Products are taken of the error as it is stored, which the matrix's gradient is made of too.
    gap = (gap * scale).to(error.dtype.element_ty)
    tl.store(error + row * d + column, gap, mask=inside)
    back = gap.to(tl.float32)
    for start in range(first, end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        at = tl.load(latent + entry, mask=live, other=0).to(tl.int64)[:, None] * d
        both = live[:, None] & inside[None, :]
        rows = tl.load(matrix + at + column[None, :], mask=both, other=0.0).to(tl.float32)
        tl.store(to_value + entry, tl.sum(rows * back[None, :], axis=1), mask=live)
