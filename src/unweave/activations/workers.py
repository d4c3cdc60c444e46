"""One thread a job: how the CPU's cores are shared between many small pieces of work.

A part's training step and a slice of rows through the subject are each done by a single thread,
and several of them run side by side. That wastes less than splitting every operation over all
cores, and a result never depends on how many cores there were.
"""

import copy
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch

from unweave.activations.pool import Pool
from unweave.subject import Subject

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A fixed set of single-threaded workers; use it as a context manager."""

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or available_cores()
        self._before = torch.get_num_threads()
        torch.set_num_threads(1)
        self._pool = Pool(self.threads, partial(torch.set_num_threads, 1))
        self._local = threading.local()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.close()
        torch.set_num_threads(self._before)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Do the work for every item and yield the results in the items' order."""
        futures = [self._pool.submit(work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def begin(
        self, work: Callable[[Item], Any], items: Iterable[Item], *, urgent: bool = True
    ) -> list[Future]:
        """Have the work done for every item without waiting for it.

        What is not urgent is begun only by workers that find nothing urgent to do.
        """
        return [self._pool.submit(work, item, urgent=urgent) for item in items]

    def twin(self, subject: Subject) -> Subject:
        """This thread's own copy of the subject: its weights are shared, its hooks are not."""
        twins: dict[int, tuple[Subject, Subject]] = self._local.__dict__.setdefault("twins", {})
        if id(subject) not in twins:
            # The original is kept beside its twin: a freed subject's id could be given away again.
            twins[id(subject)] = (subject, twin_of(subject))
        return twins[id(subject)][1]


def twin_of(subject: Subject) -> Subject:
    """A copy of the subject with modules and hooks of its own over the same weights."""
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    return copy.deepcopy(subject, {id(tensor): tensor for tensor in tensors})
