"""The encoder's product on tensor cores, of which only maxima over groups of latents are kept.

`group_maxima` multiplies everything and writes one number a group; `members` multiplies again, for
the few groups of each row that can hold a chosen latent. Pairs of a row and a group come sorted by
group, so that a block of rows is multiplied with one group's encoder rows at a time: for k of n
latents in groups of g that is k g / n of the first product, and no gather of single encoder rows.

Products are taken in the operands' format and added up in float32.
"""

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import interpreting, on_device_of


class Tiles(NamedTuple):
    """Sizes of what one program multiplies at once."""

    rows: int = 128
    """Rows of vectors."""
    latents: int = 128
    """Latents; a multiple of the group."""
    deep: int = 64
    """Coordinates of the vectors."""
    pairs: int = 64
    """Pairs of a row and a group."""
    warps: int = 8
    """Warps a program."""
    stages: int = 3
    """Loads under way at once."""


def tiles_for(device: torch.device) -> Tiles:
    """Wide tiles where a processor of the GPU has the shared memory for them (A100, H100)."""
    if device.type != "cuda":
        return Tiles()
    major, minor = torch.cuda.get_device_capability(device)
    return Tiles(latents=256) if (major, minor) == (8, 0) or major in (9, 10) else Tiles()


def group_maxima(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    group: int,
    *,
    signed: bool = False,
    floor: Float[Tensor, " latents"] | None = None,
    tiles: Tiles | None = None,
) -> Float[Tensor, "rows groups"]:
    """Largest `W x + b` of each `group` neighbouring latents; float32.

    With `signed` the largest in absolute value, with `floor` the largest excess over it. The last
    group may have fewer latents.
    """
    tiles = tiles or tiles_for(x.device)
    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    rows, n, d = len(x), len(W), x.shape[1]
    groups = triton.cdiv(n, group)
    out = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    span = max(tiles.latents, group)
    programs = triton.cdiv(rows, tiles.rows) * triton.cdiv(n, span)
    if not programs:
        return out
    with on_device_of(x):
        _maxima[(programs,)](
            x, W, b, b if floor is None else floor.contiguous(), out, rows, n, d,
            BLOCK_ROWS=tiles.rows, BLOCK_LATENTS=span, BLOCK_DEEP=tiles.deep, GROUP=group,
            EVEN=d % tiles.deep == 0, SIGNED=signed, FLOOR=floor is not None,
            WIDEN=interpreting(), num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return out


def members(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    row: Int[Tensor, " pairs"],
    which: Int[Tensor, " pairs"],
    group: int,
    *,
    tiles: Tiles | None = None,
) -> Float[Tensor, "pairs group"]:
    """`W x + b` of every latent in group `which` at `row`, pair by pair; float32.

    Places beyond the last latent hold minus infinity.
    """
    tiles = tiles or tiles_for(x.device)
    x, W, b = x.contiguous(), W.contiguous(), b.contiguous()
    out = torch.empty(len(row), group, dtype=torch.float32, device=x.device)
    if not len(row):
        return out
    sorted_groups, place = which.to(torch.int32).sort(stable=True)
    with on_device_of(x):
        _members[(triton.cdiv(len(row), tiles.pairs),)](
            x, W, b, row[place], sorted_groups, place, out, len(row), len(W), x.shape[1],
            BLOCK_PAIRS=tiles.pairs, BLOCK_DEEP=tiles.deep, GROUP=group,
            EVEN=x.shape[1] % tiles.deep == 0, WIDEN=interpreting(),
            num_warps=4, num_stages=tiles.stages,
        )  # fmt: skip
    return out


@triton.jit
@no_type_check
def _maxima(
    x, W, b, floor, out, rows, n, d,
    BLOCK_ROWS: tl.constexpr, BLOCK_LATENTS: tl.constexpr, BLOCK_DEEP: tl.constexpr,
    GROUP: tl.constexpr, EVEN: tl.constexpr, SIGNED: tl.constexpr, FLOOR: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    # Eight blocks of rows take turns on the same encoder rows, which then come out of the cache.
    across = tl.cdiv(rows, BLOCK_ROWS)
    turn = tl.program_id(0) // (8 * tl.cdiv(n, BLOCK_LATENTS))
    beside = tl.minimum(across - turn * 8, 8)
    inside = tl.program_id(0) % (8 * tl.cdiv(n, BLOCK_LATENTS))
    row = (turn * 8 + inside % beside) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first = (inside // beside) * BLOCK_LATENTS
    latent = first + tl.arange(0, BLOCK_LATENTS)
    # Rows and latents past the end read the last one; what they give is not written, or masked.
    deep = tl.arange(0, BLOCK_DEEP)
    at_x = x + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * d + deep[None, :]
    at_W = W + tl.minimum(latent, n - 1).to(tl.int64)[None, :] * d + deep[:, None]
    pre = tl.zeros((BLOCK_ROWS, BLOCK_LATENTS), tl.float32)
    for start in range(0, d, BLOCK_DEEP):
        if EVEN:
            left, right = tl.load(at_x), tl.load(at_W)
        else:
            left = tl.load(at_x, mask=deep[None, :] + start < d, other=0.0)
            right = tl.load(at_W, mask=deep[:, None] + start < d, other=0.0)
        if WIDEN:  # the interpreter takes bfloat16's bits for integers in a product
            left, right = left.to(tl.float32), right.to(tl.float32)
        pre = tl.dot(left, right, pre, input_precision="ieee")
        at_x += BLOCK_DEEP
        at_W += BLOCK_DEEP
    real = latent < n
    pre += tl.load(b + latent, mask=real, other=0.0).to(tl.float32)[None, :]
    if SIGNED:
        pre = tl.abs(pre)
    if FLOOR:
        pre -= tl.load(floor + latent, mask=real, other=0.0).to(tl.float32)[None, :]
    pre = tl.where(real[None, :], pre, float("-inf"))
    best = tl.max(tl.reshape(pre, (BLOCK_ROWS, BLOCK_LATENTS // GROUP, GROUP)), axis=2)
    groups = tl.cdiv(n, GROUP)
    group = first // GROUP + tl.arange(0, BLOCK_LATENTS // GROUP)
    to = out + row.to(tl.int64)[:, None] * groups + group[None, :]
    tl.store(to, best, mask=(row < rows)[:, None] & (group < groups)[None, :])


@triton.jit
@no_type_check
def _members(
    x, W, b, row, which, place, out, pairs, n, d,
    BLOCK_PAIRS: tl.constexpr, BLOCK_DEEP: tl.constexpr, GROUP: tl.constexpr,
    EVEN: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0) * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)
    live = pair < pairs
    last = tl.minimum(tl.program_id(0) * BLOCK_PAIRS + BLOCK_PAIRS, pairs) - 1
    group = tl.load(which + pair, mask=live, other=-1)
    to = tl.load(place + pair, mask=live, other=0).to(tl.int64)
    at = tl.load(row + pair, mask=live, other=0).to(tl.int64)
    member, deep = tl.arange(0, GROUP), tl.arange(0, BLOCK_DEEP)
    # Sorted pairs of one block span few groups: over all blocks, no more than blocks and groups.
    for now in range(tl.load(which + tl.program_id(0) * BLOCK_PAIRS), tl.load(which + last) + 1):
        mine = group == now
        if tl.max(mine.to(tl.int32), axis=0) > 0:
            latent = now * GROUP + member
            at_x = x + at[:, None] * d + deep[None, :]
            at_W = W + tl.minimum(latent, n - 1).to(tl.int64)[None, :] * d + deep[:, None]
            pre = tl.zeros((BLOCK_PAIRS, GROUP), tl.float32)
            for start in range(0, d, BLOCK_DEEP):
                if EVEN:
                    left, right = tl.load(at_x), tl.load(at_W)
                else:
                    left = tl.load(at_x, mask=deep[None, :] + start < d, other=0.0)
                    right = tl.load(at_W, mask=deep[:, None] + start < d, other=0.0)
                if WIDEN:
                    left, right = left.to(tl.float32), right.to(tl.float32)
                pre = tl.dot(left, right, pre, input_precision="ieee")
                at_x += BLOCK_DEEP
                at_W += BLOCK_DEEP
            real = latent < n
            pre += tl.load(b + latent, mask=real, other=0.0).to(tl.float32)[None, :]
            pre = tl.where(real[None, :], pre, float("-inf"))
            tl.store(out + to[:, None] * GROUP + member[None, :], pre, mask=mine[:, None])
