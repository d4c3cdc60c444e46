"""Threads that take what is urgent first, and what can wait when nothing urgent is left."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, PriorityQueue
from typing import Any

_URGENT, _CAN_WAIT, _END = range(3)


@dataclass
class _Job:
    future: Future
    work: Callable[[Any], Any]
    item: Any

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.work(self.item)
        except BaseException as error:  # whoever waits for the result is to see it
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class Pool:
    """A fixed number of threads over one queue of two priorities, first come first served in each.

    What has begun is never put aside: something urgent waits until a thread is done with what it
    does.
    """

    def __init__(self, threads: int, begin: Callable[[], object]) -> None:
        """Start the threads; each calls `begin` first."""
        self._queue: PriorityQueue[tuple[int, int, _Job | None]] = PriorityQueue()
        self._number = itertools.count()
        self._threads = [
            threading.Thread(target=self._serve, args=(begin,), daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[Any], Any], item: Any, *, urgent: bool = True) -> Future:
        """Do `work(item)` in one of the threads."""
        job = _Job(Future(), work, item)
        self._queue.put((_URGENT if urgent else _CAN_WAIT, next(self._number), job))
        return job.future

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and end the threads."""
        try:
            while True:
                job = self._queue.get_nowait()[2]
                if job is not None:
                    job.future.cancel()
        except Empty:
            pass
        for _ in self._threads:
            self._queue.put((_END, next(self._number), None))
        for thread in self._threads:
            thread.join()

    def _serve(self, begin: Callable[[], object]) -> None:
        begin()
        while True:
            job = self._queue.get()[2]
            if job is None:
                return
            job.do()
            del job  # its result and what it was made from are not kept until the next one comes
