"""Which tensors a piece of code creates, to show that nothing dense was among them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """While it is entered, remembers the size of every tensor that an operation returns.

    Backward passes on the CPU are seen as well. Sparse tensors count by what they store, views by
    the memory they look at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        """Most elements in the memory of one tensor."""
        self.operation = ""
        """What returned it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                elements = leaf.untyped_storage().nbytes() // leaf.element_size()
                if elements > self.largest:
                    self.largest, self.operation = elements, f"{func} {tuple(leaf.shape)}"
        return out
