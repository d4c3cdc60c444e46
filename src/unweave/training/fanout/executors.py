"""Who does a piece of work: this process, or several of this machine; a dead one is replaced.

An executor takes a function and items and hands results out as they come. What a function raises is
raised here; a process that dies without a word (out of memory, killed) is replaced, and what it had
in hand is given to another.
"""

import os
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from unweave.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable
class Executor(Protocol):
    """Something that does pieces of work, here or on other machines."""

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """The place of every item and what came of it, in the order in which they finish."""
        ...


class Here:
    """One piece after the other in this process."""

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.run`."""
        return ((place, work(item)) for place, item in enumerate(items))


class _Hand(NamedTuple):
    """One process and what it is doing."""

    process: Any
    place: int


class Processes:
    """So many processes of this machine, one thread each; work and items must be picklable."""

    def __init__(self, count: int | None = None, *, retries: int = 2) -> None:
        """As many as there are cores when not told; an item is tried again `retries` times."""
        from unweave.activations.workers import available_cores  # and with it all of torch

        self._count, self._retries = count or available_cores(), retries
        self._context = get_context("spawn")

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.run`.

        Raises:
            UserError: a process died over the same item again and again.
        """
        waiting, tries = deque(range(len(items))), Counter[int]()
        idle: list[tuple[Connection, Any]] = []
        busy: dict[Connection, _Hand] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._count:
                    pipe, process = idle.pop() if idle else self._hired(work)
                    place = waiting.popleft()
                    busy[pipe] = _Hand(process, place)
                    _give(pipe, items[place])
                for pipe in _ready(busy):
                    hand = busy.pop(pipe)
                    answer = _answer(pipe)
                    if answer is None:
                        tries[hand.place] += 1
                        self._let_go(hand.process, tries[hand.place])
                        waiting.appendleft(hand.place)
                        continue
                    idle.append((pipe, hand.process))
                    if isinstance(answer, BaseException):
                        raise answer
                    yield hand.place, answer[0]
        finally:
            for process in [h.process for h in busy.values()] + [p for _, p in idle]:
                process.terminate()
                process.join()

    def _hired(self, work: Callable) -> tuple[Connection, Any]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, work), daemon=True)
        process.start()
        theirs.close()  # or nobody would notice when the process is gone
        return mine, process

    def _let_go(self, process: Any, tries: int) -> None:
        process.join()
        if tries > self._retries:
            raise UserError(
                f"A worker died {tries} times over the same task (exit code {process.exitcode}; "
                "-9 is often too little memory): give it fewer workers or a smaller task"
            )


def _ready(busy: dict[Connection, _Hand]) -> list[Connection]:
    found = set(wait(list(busy)))
    return [pipe for pipe in busy if pipe in found]


def _give(pipe: Connection, item: object) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # reading will say that it has died
        pipe.send(item)


def _answer(pipe: Connection) -> Any:
    """A result in a tuple, or what was raised; None from a process that is gone."""
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        return None


def _serve(pipe: Connection, work: Callable) -> None:
    """Do what comes, until there is nobody to do it for."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is still to come
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            pipe.send(_outcome(work, pipe.recv()))


def _outcome(work: Callable, item: object) -> Any:
    try:
        return (work(item),)
    except UserError as error:
        return error
    except Exception:
        # Not every exception can be sent, and a traceback never.
        return RuntimeError(f"a task failed in process {os.getpid()}\n{traceback.format_exc()}")
