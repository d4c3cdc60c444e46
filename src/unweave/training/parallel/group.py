"""Processes that answer one another, and how many bytes that takes."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """Some of the processes of a run; every one of them must ask the same questions in turn.

    With one process in it nothing is sent and every answer is one's own.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = 1 if group is None else group.size()
        self.rank = 0 if group is None else group.rank()
        self.sent = 0
        """Bytes that left this process so far, by the count of a ring: 2 (size - 1) / size of what
        is added up, size - 1 times what is handed around."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, the same bits in each of them."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest over the processes, place by place."""
        return self._reduced(tensor, dist.ReduceOp.MAX)

    def smallest(self, tensor: Tensor) -> Tensor:
        """The smallest over the processes, place by place."""
        return self._reduced(tensor, dist.ReduceOp.MIN)

    def sum_(self, tensor: Tensor) -> Tensor:
        """`sum`, in the place of a tensor that is contiguous."""
        if self.size > 1:
            self._count_sum(tensor)
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Everybody's tensor, all of one shape, in the order of the processes."""
        if self.size == 1:
            return [tensor]
        found = [torch.empty_like(tensor) for _ in range(self.size)]
        self.sent += (self.size - 1) * tensor.nbytes
        dist.all_gather(found, tensor.contiguous(), group=self._group)
        return found

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Everybody's rows, however many each has, one process after the other."""
        if self.size == 1:
            return tensor
        counts = self.counts(len(tensor), tensor.device)
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(self.gather(padded), counts, strict=True)
        return torch.cat([part[:count] for part, count in parts])

    def counts(self, count: int, device: torch.device | None = None) -> list[int]:
        """Everybody's number."""
        mine = torch.tensor([count], device=device)
        return torch.cat(self.gather(mine)).tolist()

    def wait(self) -> None:
        """Until everybody is here."""
        if self.size > 1:
            dist.barrier(group=self._group)

    def _reduced(self, tensor: Tensor, how: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return tensor
        found = tensor.detach().clone(memory_format=torch.contiguous_format)
        self._count_sum(found)
        dist.all_reduce(found, how, group=self._group)
        return found

    def _count_sum(self, tensor: Tensor) -> None:
        self.sent += 2 * (self.size - 1) * tensor.nbytes // self.size


def interleaved(parts: Sequence[Tensor]) -> Tensor:
    """Slices of every `len(parts)`-th row put together again."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)
