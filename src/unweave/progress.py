"""How long work tells where it stands: a rate, a share done and the time left.

A stage takes `progress: Progress = QUIET` and reports in its own unit; who shows it decides how.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[[float], None]


@runtime_checkable
class Progress(Protocol):
    """Where a stage reports."""

    def task(self, title: str, *, total: float, unit: str) -> AbstractContextManager[Advance]:
        """Open a task of `total` units; use it as a context manager that yields `advance(n)`."""
        ...

    def say(self, line: str) -> None:
        """Show one plain line."""
        ...


class _Quiet:
    @contextmanager
    def task(self, title: str, *, total: float, unit: str) -> Iterator[Advance]:
        yield lambda amount: None

    def say(self, line: str) -> None:
        pass


QUIET: Progress = _Quiet()
"""Reports nothing."""


class Lines:
    """Plain lines for logs and pipes: at most one every `every` seconds for each task."""

    def __init__(self, *, every: float = 15.0) -> None:
        self._every = every

    @contextmanager
    def task(self, title: str, *, total: float, unit: str) -> Iterator[Advance]:
        """See `Progress.task`."""
        start = last = time.monotonic()
        done = 0.0

        def advance(amount: float) -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= self._every:
                last = now
                rate = done / (now - start)
                left = (total - done) / rate if rate else float("inf")
                self.say(f"{title}: {done / total:.0%}, {_plain(rate)} {unit}/s, {left:.0f} s left")

        yield advance
        self.say(f"{title}: done, {done:,.0f} {unit} in {time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        print(line, file=sys.stderr, flush=True)


class Terminal:
    """Bars with rate and time left, for a person watching; each leaves one line when done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%", markup=False),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
        )
        self._open = 0

    @contextmanager
    def task(self, title: str, *, total: float, unit: str) -> Iterator[Advance]:
        """See `Progress.task`."""
        start = time.monotonic()
        done = 0.0
        bar = self._bars.add_task(title, total=total, rate="")

        def advance(amount: float) -> None:
            nonlocal done
            done += amount
            rate = done / max(time.monotonic() - start, 1e-9)
            self._bars.update(bar, advance=amount, rate=f"{_plain(rate)} {unit}/s")

        self._open += 1
        if self._open == 1:
            self._bars.start()
        try:
            yield advance
        finally:
            self._bars.remove_task(bar)
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
        self.say(f"{title}: done, {done:,.0f} {unit} in {time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        """See `Progress.say`."""
        self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def watching() -> Progress:
    """Bars when standard error is a terminal, plain lines when it is a file or a pipe."""
    return Terminal() if sys.stderr.isatty() else Lines()


def _plain(rate: float) -> str:
    """A rate as people read it: `1,234`, `12`, `0.37`."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
