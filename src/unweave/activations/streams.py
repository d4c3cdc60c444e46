"""Work handed to threads, on streams beside the one that trains, where a device has streams.

A GPU does what one stream is given in its order. What a thread gives to a stream of its own runs
beside the training step, as long as two orders are kept: it begins after what had been given when
the work was handed out (which may still read the buffers that are now written), and whoever reads
what it wrote begins after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
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
        """Within it, what this thread gives to the device goes to a stream of its own."""
        if self._device is None:
            yield
            return
        own = torch.cuda.Stream(self._device)
        with torch.cuda.stream(own):
            own.wait_event(self._begun)
            yield
            self._ends.append(own.record_event())

    def join(self) -> None:
        """Whatever is given to the present stream from now on begins after all of it."""
        for end in self._ends:
            torch.cuda.current_stream(self._device).wait_event(end)
