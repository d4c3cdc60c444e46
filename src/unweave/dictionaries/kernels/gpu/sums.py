"""Ragged sums and sampled products: decoding a code and differentiating both ends of it.

Each sum is one program's, over entries in a fixed order: no atomics, the same bits every time.
Matrices may be bfloat16; everything is added up in float32.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import on_device_of

ENTRIES = 16
"""Entries that a program reads at once."""
WIDTH = 128
"""Columns that a program adds up."""


def bag_sums(
    weight: Float[Tensor, " active"],
    matrix: Float[Tensor, "rows d"],
    index: Int[Tensor, " active"],
    ends: Int[Tensor, " ends"],
) -> Float[Tensor, "bags d"]:
    """For bag b the sum of `weight[e] * matrix[index[e]]` over e from `ends[b]` to `ends[b + 1]`.

    With a code's rows as bags this decodes it; with latents as bags, entries sorted by latent, it
    is the gradient of a matrix.
    """
    weight, matrix, index = weight.contiguous(), matrix.contiguous(), index.contiguous()
    bags, d = len(ends) - 1, matrix.shape[1]
    out = torch.empty(bags, d, dtype=torch.float32, device=matrix.device)
    if bags and d:
        with on_device_of(matrix):
            _bags[(bags, triton.cdiv(d, WIDTH))](
                weight, matrix, index, ends, out, d, ENTRIES=ENTRIES, WIDTH=WIDTH, num_warps=4
            )
    return out


def sampled_products(
    left: Float[Tensor, "rows d"],
    right: Float[Tensor, "latents d"],
    latent: Int[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
) -> Float[Tensor, " active"]:
    """`left[r] . right[latent[e]]` for every entry e of row r, `offsets[r]` to `offsets[r + 1]`."""
    left, right, latent = left.contiguous(), right.contiguous(), latent.contiguous()
    out = torch.empty(len(latent), dtype=torch.float32, device=left.device)
    if len(latent):
        with on_device_of(left):
            _products[(len(left),)](
                left, right, latent, offsets, out, left.shape[1],
                ENTRIES=ENTRIES, WIDTH=WIDTH, num_warps=4,
            )  # fmt: skip
    return out


@triton.jit
@no_type_check
def _bags(weight, matrix, index, ends, out, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    bag = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = column < d
    end = tl.load(ends + bag + 1)
    total = tl.zeros((WIDTH,), tl.float32)
    for start in range(tl.load(ends + bag), end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        row = tl.load(index + entry, mask=live, other=0).to(tl.int64)
        by = tl.load(weight + entry, mask=live, other=0.0).to(tl.float32)
        at = matrix + row[:, None] * d + column[None, :]
        rows = tl.load(at, mask=live[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += tl.sum(by[:, None] * rows, axis=0)
    tl.store(out + bag * d + column, total, mask=inside)


@triton.jit
@no_type_check
def _products(left, right, latent, offsets, out, d, ENTRIES: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(offsets + row + 1)
    for start in range(tl.load(offsets + row), end, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        live = entry < end
        at = right + tl.load(latent + entry, mask=live, other=0).to(tl.int64)[:, None] * d
        total = tl.zeros((ENTRIES,), tl.float32)
        for first in range(0, d, WIDTH):
            column = first + tl.arange(0, WIDTH)
            inside = column < d
            mine = tl.load(left + row * d + column, mask=inside, other=0.0).to(tl.float32)
            both = live[:, None] & inside[None, :]
            theirs = tl.load(at + column[None, :], mask=both, other=0.0).to(tl.float32)
            total += tl.sum(theirs * mine[None, :], axis=1)
        tl.store(out + entry, total, mask=live)
