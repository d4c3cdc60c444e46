"""Work handed to threads, on a stream beside the one that trains, where a device has streams.

A GPU does what one stream is given in its order. What threads give to another stream runs beside
the training step, as long as two orders are kept: it begins after what had been given when the work
was handed out (which may still read the buffers that are now written), and whoever reads what it
wrote begins after it. All threads give to one stream, because every stream keeps memory of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


class Aside:
    """One piece of work that several threads share; on the processor there is nothing to order."""

    def __init__(self, device: torch.device) -> None:
        """Called by whoever hands the work out."""
        self._device = device if device.type == "cuda" else None
        self._begun: Any = None
        if self._device is not None:
            self._begun = torch.cuda.current_stream(self._device).record_event()
        self._ends: list[Any] = []

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Within it, what this thread gives to the device goes to the stream beside."""
        if self._device is None:
            yield
            return
        beside = _beside(self._device)
        with torch.cuda.stream(beside):
            beside.wait_event(self._begun)
            yield
            self._ends.append(beside.record_event())

    def join(self) -> None:
        """Whatever is given to the present stream from now on begins after all of it."""
        for end in self._ends:
            torch.cuda.current_stream(self._device).wait_event(end)


@cache
def _beside(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
