"""Pieces of work on the machines of a Ray cluster."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from unweave.errors import UserError
from unweave.training.fanout.executors import Executor

Item = TypeVar("Item")
Result = TypeVar("Result")


def ray_executor(address: str | None = None) -> Executor:
    """Pieces spread over the machines of a Ray cluster, what they share sent once.

    Raises:
        UserError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "Work on several machines needs Ray; install it with: pip install 'unweave[ray]'"
        ) from error
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    return RayExecutor(ray)


@runtime_checkable
class RemoteCall(Protocol):
    """A function that runs elsewhere."""

    def remote(self, *arguments: object) -> Hashable:
        """Start a call and return a reference to its result."""
        ...


@runtime_checkable
class RemoteCalls(Protocol):
    """What is used of the module `ray`."""

    def put(self, value: object) -> object:
        """Keep a value where all machines reach it."""
        ...

    def remote(self, function: Callable) -> RemoteCall:
        """Make a function that runs elsewhere."""
        ...

    def wait(self, references: list) -> tuple[list, list]:
        """Those of some results that are there, one at least, and those that are not."""
        ...

    def get(self, reference: object) -> Any:
        """A result."""
        ...


class RayExecutor:
    """An executor over Ray, or over anything with its `put`, `remote`, `wait` and `get`.

    Ray starts the call of a worker that was killed again, three times unless told otherwise.
    """

    def __init__(self, ray: RemoteCalls) -> None:
        self._ray = ray

    def run(
        self, work: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        """See `Executor.run`; all pieces are under way at once."""
        shared = self._ray.put(work)
        call = self._ray.remote(_remotely)
        places = {call.remote(shared, item): place for place, item in enumerate(items)}
        while places:
            done, _ = self._ray.wait(list(places))
            for reference in done:
                yield places.pop(reference), self._ray.get(reference)


def _remotely(work: Callable[[Item], Result], item: Item) -> Result:
    torch.set_num_threads(1)
    return work(item)
