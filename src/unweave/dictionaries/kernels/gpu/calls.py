"""What `kernels.select` and `kernels.ragged` hand over: to Triton, or to torch on the same device.

Triton is imported when a kernel is first called, so that nobody else pays for it or needs it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.gpu.ready import able

if TYPE_CHECKING:
    from unweave.dictionaries.kernels.native.calls import Fitted
    from unweave.dictionaries.kernels.select import Selection

__all__ = [
    "able",
    "above",
    "adam",
    "bags",
    "elsewhere",
    "fit",
    "fits",
    "inner",
    "largest",
    "largest_of_batch",
    "largest_products",
    "number_format",
    "squares",
    "totals",
]

_PIECE = 1 << 24
"""Numbers gathered at once where no kernel does without gathering."""


@runtime_checkable
class Linear(Protocol):
    """A scorer that says what it multiplies by."""

    W: Tensor
    """[latents, d_in], in the format of the product."""
    bias: Tensor
    """[latents], in float32."""


def number_format(device: torch.device) -> torch.dtype:
    """Number format of the encoder's product on a device: bfloat16 where its tensor cores read it.

    See `kernels.sparse.product_dtype` for the processor.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


def elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor is on a device where torch's sampled product is not to be had for it."""
    return tensor.device.type != "cpu"


def bags(
    matrix: Float[Tensor, "rows d"],
    index: Int[Tensor, " active"],
    weight: Float[Tensor, " active"],
    bounds: Int[Tensor, " ends"],
    order: Int[Tensor, " active"] | None = None,
) -> Float[Tensor, "bags d"]:
    """For each bag the weighted sum of the matrix's rows `index`; weights taken by `order`."""
    from unweave.dictionaries.kernels.gpu.sums import bag_sums

    return bag_sums(weight if order is None else weight[order], matrix, index, bounds)


def inner(
    left: Float[Tensor, "rows d"],
    right: Float[Tensor, "latents d"],
    latent: Int[Tensor, " active"],
    row: Int[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
) -> Float[Tensor, " active"]:
    """`left[row] . right[latent]` at every entry."""
    if able(left, right):
        from unweave.dictionaries.kernels.gpu.sums import sampled_products

        return sampled_products(left, right, latent, offsets)
    at_once = max(1, _PIECE // left.shape[1])
    pieces = zip(row.split(at_once), latent.split(at_once), strict=True)
    found = [torch.linalg.vecdot(left[r], right[j]) for r, j in pieces]
    return torch.cat(found) if found else left.new_zeros(0)


def fits(d: int) -> bool:
    """Whether a row of that width can be compared with its target in one go."""
    from unweave.dictionaries.kernels.gpu.compare import WIDEST

    return d <= WIDEST


def fit(
    matrix: Float[Tensor, "latents d"],
    latent: Int[Tensor, " active"],
    value: Float[Tensor, " active"],
    offsets: Int[Tensor, " ends"],
    bias: Float[Tensor, " d"],
    target: Float[Tensor, "rows d"],
    scale: float,
) -> "Fitted":
    """Decode a code, compare it with its target and take the error back to its values."""
    from unweave.dictionaries.kernels.gpu.compare import decode_and_compare

    return decode_and_compare(matrix, latent, value, offsets, bias, target, scale)


def totals(
    weight: Float[Tensor, " active"], bounds: Int[Tensor, " ends"]
) -> Float[Tensor, " bags"]:
    """Sum of each bag's weights, from `bounds[b]` to `bounds[b + 1]`; no atomics either."""
    # Unsafe is not to look whether the bounds are bounds, for which the device would be waited for.
    return torch.segment_reduce(weight, "sum", offsets=bounds, unsafe=True)


def squares(
    matrix: Float[Tensor, "rows d"], gradient: Float[Tensor, "rows d"], *, unit: bool
) -> Float[Tensor, ""]:
    """Squared length of a matrix's gradient; with `unit`, less what would only lengthen rows."""
    from unweave.dictionaries.kernels.gpu.update import row_squares

    return row_squares(gradient, matrix if unit else None).sum()


def adam(
    matrix: Float[Tensor, "rows d"],
    gradient: Float[Tensor, "rows d"],
    moments: tuple[Float[Tensor, "rows d"], Float[Tensor, "rows d"]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
    factor: float,
    unit: bool,
    copy: Float[Tensor, "rows d"] | None = None,
) -> None:
    """One step of Adam on a matrix in place, its gradient times `factor`, its rows kept `unit`.

    `copy` is filled with the new matrix in its own format.
    """
    from unweave.dictionaries.kernels.gpu.update import AdamStep, adam_rows_

    at = AdamStep(lr, betas, eps, step, factor)
    adam_rows_(matrix, gradient, *moments, at, unit=unit, copy=copy)


def largest_products(
    x: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
    b: Float[Tensor, " latents"],
    k: int,
) -> "Selection | None":
    """The k largest `W x + b` of each row, where a kernel can tell them."""
    if (group := _group(x, W, k)) is None:
        return None
    from unweave.dictionaries.kernels.gpu import choose

    return choose.largest(x, W, b, k, group)


def largest(
    scorer: Callable[[Tensor], Tensor], x: Float[Tensor, "rows d_in"], k: int, *, signed: bool
) -> "Selection | None":
    """The k largest scores of each row, where the scorer is linear and a kernel can tell them."""
    if (found := _product(scorer, x, k)) is None:
        return None
    from unweave.dictionaries.kernels.gpu import choose

    return choose.largest(x, *found[:2], k, found.group, signed=signed)


def largest_of_batch(
    scorer: Callable[[Tensor], Tensor], x: Float[Tensor, "rows d_in"], k: int
) -> "Selection | None":
    """The `rows * k` largest positive scores of the batch, under the same condition."""
    if (found := _product(scorer, x, k)) is None:
        return None
    from unweave.dictionaries.kernels.gpu import choose

    return choose.largest_of_batch(x, *found[:2], k, found.group)


def above(
    scorer: Callable[[Tensor], Tensor],
    x: Float[Tensor, "rows d_in"],
    threshold: Float[Tensor, "*latents"],
) -> "Selection | None":
    """Every score that exceeds its latent's threshold, under the same condition."""
    if (found := _product(scorer, x, 1)) is None:
        return None
    from unweave.dictionaries.kernels.gpu import choose

    return choose.above(x, *found[:2], threshold)


class _Product(NamedTuple):
    W: Tensor
    bias: Tensor
    group: int


def _product(scorer: Callable[[Tensor], Tensor], x: Tensor, k: int) -> _Product | None:
    if not isinstance(scorer, Linear):
        return None
    group = _group(x, scorer.W, k)
    return None if group is None else _Product(scorer.W, scorer.bias, group)


def _group(x: Tensor, W: Tensor, k: int) -> int | None:
    """Latents in a group; None where the product is not one of the tensor cores'.

    Full float32 products, which whatever is measured asks for, are faster in torch's own routine.
    """
    if x.dtype not in (torch.bfloat16, torch.float16) or x.dtype != W.dtype or not able(x, W):
        return None
    from unweave.dictionaries.kernels.gpu.choose import group_for

    return group_for(len(W), k)
