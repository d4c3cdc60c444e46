"""Share a range of rows out to as many threads as torch may use.

Each row is worked on by one thread in an order of its own, so that no result depends on how many
there are. C code holds no lock of Python's, so that plain threads are enough.
"""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Int
from torch import Tensor

_WORTH_SHARING = 64


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="unweave-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of the threads


def share_out(
    work: Callable[[int, int], object],
    count: int,
    ends: Int[Tensor, " ends"] | None = None,
    *,
    together: int = 1,
) -> None:
    """Do `work(first, last)` for ranges that make up `range(count)`.

    `ends[i]` tells how much work has been done before item i, where items are not all alike; a
    range begins at a multiple of `together`.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < _WORTH_SHARING:
        work(0, count)
        return
    if ends is None:
        cuts = [count * i // threads for i in range(threads + 1)]
    else:
        wanted = torch.linspace(0, float(ends[-1]), threads + 1)[1:-1]
        cuts = [0, *torch.searchsorted(ends, wanted.long()).clamp_max(count).tolist(), count]
    cuts = [cut if cut == count else cut // together * together for cut in cuts]
    ranges = list(itertools.pairwise(cuts))
    others = [_pool().submit(work, *place) for place in ranges[1:] if place[0] < place[1]]
    work(*ranges[0])
    for other in others:
        other.result()
