"""The next batch on its way to a GPU while this one is trained on.

Vectors that lie in the host's memory are gathered by a thread of its own into pages that the GPU
can read by itself, and sent on a stream beside that of the training step: a step waits for its
batch only where gathering is slower than training.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from unweave.training.batches import VectorBatch, VectorSource


class _Sent(NamedTuple):
    batch: VectorBatch
    arrived: Any
    """An event of the stream that it was sent on; None where nothing has to be waited for."""


class Ahead:
    """A source of vectors, one step ahead of whoever asks, with its batches on `device`.

    It gives what `source` gives, whichever step is asked for. Use it as a context manager:

    ```python
    with Ahead(ArraySource(vectors, batch=4096, pinned=True), trainee.device) as source:
        train([trainee], source)
    ```
    """

    def __init__(self, source: VectorSource, device: torch.device) -> None:
        self._source, self._device = source, device
        self.steps, self.batch = source.steps, source.batch
        self._thread = ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._coming: tuple[int, Future] | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def at(self, step: int) -> VectorBatch:
        """The batch of one step, on the device; the next one is begun on."""
        coming, self._coming = self._coming, None
        if coming is None or coming[0] != step:
            coming = step, self._thread.submit(self._send, step)
        sent: _Sent = coming[1].result()
        if step + 1 < self.steps:
            self._coming = step + 1, self._thread.submit(self._send, step + 1)
        if sent.arrived is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(sent.arrived)
            for rows in sent.batch.vectors.values():
                rows.record_stream(now)  # its memory is not given away while this step reads it
        return sent.batch

    def _send(self, step: int) -> _Sent:
        batch = self._source.at(step)
        if self._stream is None:
            return _Sent(batch.to(self._device), None)
        with torch.cuda.stream(self._stream):
            there = _pinned(batch).to(self._device)
            return _Sent(there, self._stream.record_event())


def _pinned(batch: VectorBatch) -> VectorBatch:
    """The same vectors in pages that the GPU reads by itself, where they are the host's."""
    held = batch.vectors.items()
    return VectorBatch(
        {
            site: rows if rows.is_cuda or rows.is_pinned() else rows.pin_memory()
            for site, rows in held
        }
    )
