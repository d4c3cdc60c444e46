"""Ctrl-C that compiled code cannot swallow.

Python delivers an interrupt inside whatever Python code runs next, and that may be a small call
made from compiled code: safetensors, asking torch for a shape, turns the exception it gets into
one of its own, "could not determine the shape". A person who stopped a job would be shown a defect.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Whatever becomes of an interrupt inside the block, it leaves the block as KeyboardInterrupt.

    Only the main thread gets interrupts; in any other, and where Ctrl-C is ignored or ends the
    process at once, nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
