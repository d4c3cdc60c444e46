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
    from unweave.dictionaries.kernels.select import Selection

__all__ = [
    "able",
    "above",
    "bags",
    "elsewhere",
    "inner",
    "largest",
    "largest_of_batch",
    "product_dtype",
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


def product_dtype(device: torch.device) -> torch.dtype:
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
    """What is multiplied; None where the product is not one of the tensor cores'.

    Full float32 products, which whatever is measured asks for, are faster in torch's own routine.
    """
    if not isinstance(scorer, Linear) or x.dtype not in (torch.bfloat16, torch.float16):
        return None
    if x.dtype != scorer.W.dtype or not able(x, scorer.W):
        return None
    from unweave.dictionaries.kernels.gpu.choose import group_for

    group = group_for(len(scorer.W), k)
    return None if group is None else _Product(scorer.W, scorer.bias, group)
