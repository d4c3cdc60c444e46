"""The k largest numbers of short rows, each row ranked by one program in its registers.

The k-th largest is found bit by bit: floats whose bits are turned so that they sort as integers are
counted against a bound that grows from its highest bit down, so that after 32 counts the bound is
the k-th largest itself. Nothing is sorted, and ties are broken by place: the same input gives the
same choice.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import on_device_of

WIDEST = 16_384
"""Numbers of a row that one program holds."""


def top_places(scores: Float[Tensor, "rows n"], k: int) -> Int[Tensor, "rows k"]:
    """Places of the k largest scores of each row, ascending; k is at most n.

    Of equal scores the first are taken. Rows too long for a program are left to torch, which ranks
    them in no order.
    """
    rows, n = scores.shape
    width = triton.next_power_of_2(n)
    if width > WIDEST or scores.dtype != torch.float32:
        return scores.topk(k, dim=1, sorted=False).indices
    out = torch.empty(rows, k, dtype=torch.long, device=scores.device)
    if rows and k:
        scores = scores.contiguous()
        with on_device_of(scores):
            # A thread holds 32 numbers of a row; a row of up to 1,024 is one warp's.
            _top[(rows,)](scores, out, n, k, WIDTH=width, num_warps=min(16, max(1, width // 1024)))
    return out


@triton.jit
@no_type_check
def _top(scores, out, n, k, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    real = place < n
    bits = tl.load(scores + row * n + place, mask=real, other=0.0).to(tl.int32, bitcast=True)
    # Negative floats sort backwards by their bits; with the sign turned all sort as unsigned.
    turned = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = turned.to(tl.uint32, bitcast=True) ^ 0x80000000
    key = tl.where(real, key, 0).to(tl.uint32)  # below minus infinity
    bound = tl.zeros((1,), tl.uint32)
    step = tl.full((1,), 0x80000000, tl.uint32)
    for _ in range(32):
        higher = bound | step
        enough = tl.sum((key >= higher).to(tl.int32), axis=0) >= k
        bound = tl.where(enough, higher, bound)
        step = step >> 1
    above = key > bound
    equal = (key == bound) & real
    needed = k - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= needed))
    at = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(out + row * k + at, place.to(tl.int64), mask=chosen)
