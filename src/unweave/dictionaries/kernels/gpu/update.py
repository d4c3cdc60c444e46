"""One pass of the optimiser over a matrix: projection, clipping, Adam, unit rows, bfloat16 copy.

Done one after the other, these read and write a matrix and its moments some ten times; here each
row is read once and written once.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import on_device_of


class AdamStep(NamedTuple):
    """The numbers of one step of Adam (Kingma & Ba 2015)."""

    lr: float
    """Learning rate."""
    betas: tuple[float, float]
    """Memory of the two moments."""
    eps: float
    """Added to the root of the second moment."""
    step: int
    """Number of this step, from one on."""
    factor: float = 1.0
    """What the gradient is multiplied by first."""


def row_squares(
    gradient: Float[Tensor, "rows d"], unit: Float[Tensor, "rows d"] | None = None
) -> Float[Tensor, " rows"]:
    """Squared length of each row of a gradient; less its part along `unit`'s row, where given."""
    gradient = gradient.contiguous()
    out = torch.empty(len(gradient), dtype=torch.float32, device=gradient.device)
    beside = gradient if unit is None else unit.contiguous()
    if len(gradient):
        with on_device_of(gradient):
            _squares[(len(gradient),)](
                gradient, beside, out, gradient.shape[1],
                WIDTH=triton.next_power_of_2(gradient.shape[1]), UNIT=unit is not None, num_warps=4,
            )  # fmt: skip
    return out


def adam_rows_(
    matrix: Float[Tensor, "rows d"],
    gradient: Float[Tensor, "rows d"],
    exp_avg: Float[Tensor, "rows d"],
    exp_avg_sq: Float[Tensor, "rows d"],
    at: AdamStep,
    *,
    unit: bool,
    copy: Float[Tensor, "rows d"] | None = None,
) -> None:
    """One step of Adam on contiguous rows, in place; the gradient is read only.

    With `unit`, rows have length one: what would only lengthen them is taken out of the gradient,
    and they are brought back to length one. `copy` is filled with the new rows in its own format.
    """
    first, second = at.betas
    if not len(matrix):
        return
    with on_device_of(matrix):
        _adam[(len(matrix),)](
            matrix, gradient.contiguous(), exp_avg, exp_avg_sq, matrix if copy is None else copy,
            at.factor, at.lr / (1 - first**at.step), 1 / (1 - second**at.step) ** 0.5,
            1 - first, second, 1 - second, at.eps, matrix.shape[1],
            WIDTH=triton.next_power_of_2(matrix.shape[1]), UNIT=unit, COPY=copy is not None,
            num_warps=4 if matrix.shape[1] <= 2048 else 8,
        )  # fmt: skip


@triton.jit
@no_type_check
def _squares(gradient, beside, out, d, WIDTH: tl.constexpr, UNIT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    g = tl.load(gradient + row * d + column, mask=column < d, other=0.0).to(tl.float32)
    if UNIT:
        w = tl.load(beside + row * d + column, mask=column < d, other=0.0).to(tl.float32)
        g -= tl.sum(g * w, axis=0) * w
    tl.store(out + row, tl.sum(g * g, axis=0))


@triton.jit
@no_type_check
def _adam(
    matrix, gradient, exp_avg, exp_avg_sq, copy, factor,
    size, root, fresh, second, fresh_sq, eps, d,
    WIDTH: tl.constexpr, UNIT: tl.constexpr, COPY: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, WIDTH)
    inside = column < d
    at = tl.program_id(0).to(tl.int64) * d + column
    w = tl.load(matrix + at, mask=inside, other=0.0)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if UNIT:
        g -= tl.sum(g * w, axis=0) * w
    g *= factor
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    m += (g - m) * fresh
    v = v * second + g * g * fresh_sq
    w -= size * m / (tl.sqrt(v) * root + eps)
    if UNIT:
        w = w / tl.maximum(tl.sqrt(tl.sum(w * w, axis=0)), 1e-12)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(matrix + at, w, mask=inside)
    if COPY:
        tl.store(copy + at, w.to(copy.dtype.element_ty), mask=inside)
