"""Matrices in bfloat16, kept beside the weights from one step to the next.

Whoever updates a weight has its new value at hand and writes it rounded as well; the next step
multiplies with that instead of reading the whole matrix to round it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.native import calls as native


class _Kept(NamedTuple):
    tensor: Tensor
    version: int
    place: int


def rounded(matrix: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The matrix in bfloat16, where that is asked for and the kernels can read it.

    It is kept with the matrix and good until torch changes that; a change made past torch's count
    (through `.data`) is not noticed before the next update.
    """
    if dtype != torch.bfloat16 or matrix.dtype != torch.float32:
        return matrix
    if not (native.able(matrix) or gpu.able(matrix)):
        return matrix
    kept = to_keep(matrix)
    if kept is None:
        kept = matrix.detach().to(dtype)
        of = _Kept(kept, matrix._version, matrix.data_ptr())
        matrix._rounded = of  # type: ignore[attr-defined]
    return kept


def to_keep(matrix: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"] | None:
    """The matrix in bfloat16 as it is kept, which whoever changes the matrix has to change too."""
    kept: _Kept | None = getattr(matrix, "_rounded", None)
    if kept is None or kept[1:] != (matrix._version, matrix.data_ptr()):
        return None
    return kept.tensor
