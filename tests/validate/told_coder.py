"""A dictionary that is told the true code and changes it, for the tests of several metrics."""

from collections.abc import Callable

import torch
from torch import Tensor

from unweave.dictionaries.code import SparseCode


class ToldCoder:
    """Knows the code of the vectors it will be asked for, found again by their first numbers."""

    def __init__(
        self,
        W_dec: Tensor,
        x: Tensor,
        true: SparseCode,
        change: Callable[[Tensor], Tensor] = lambda true: true,
    ) -> None:
        self.W_dec, self.n_latents = W_dec, len(W_dec)
        dense = change(true.dense())
        self._known = {tuple(row[:3].tolist()): code for row, code in zip(x, dense, strict=True)}

    def encode(self, x: Tensor) -> SparseCode:
        found = [self._known[tuple(row[:3].tolist())] for row in x]
        return SparseCode.from_dense(torch.stack(found))

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec
