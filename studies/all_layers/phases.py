"""Where the CPU time of training goes: the time that each thread spends in each kind of work."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from unweave.activations.window import Harvester
from unweave.dictionaries.encoder.linear import LinearScorer
from unweave.dictionaries.kernels import fit, ragged, select
from unweave.training import trainee

PLACES: dict[str, tuple[Any, str]] = {
    "harvest": (Harvester, "_fill"),
    "starting": (trainee.Trainee, "begin"),
    "steps": (trainee.Trainee, "step"),
    "scoring": (LinearScorer, "__call__"),
    "selection": (select.native, "largest"),
    "decoding, error, value gradients": (fit.native, "fit"),
    "decoder gradient": (fit, "gradient_of_rows"),
    "encoder gradient": (ragged, "gradient_of_rows"),
    "update": (trainee, "update_"),
}
"""What is timed, and as which attribute of what it is found."""


class Phases:
    """Seconds by phase, all threads together; what is done within steps and named is taken out."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time every phase while the context lasts."""
        patches = [
            patch.object(owner, name, self._timed(phase, getattr(owner, name)))
            for phase, (owner, name) in PLACES.items()
        ]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def found(self) -> dict[str, float]:
        """Seconds by phase; `rest of the steps` is what no other phase of a step names."""
        spent = dict(self._spent)
        inside = [name for name in spent if name not in ("harvest", "starting", "steps")]
        spent["rest of the steps"] = spent.pop("steps", 0.0) - sum(spent[name] for name in inside)
        return {name: round(seconds, 2) for name, seconds in spent.items()}

    def _timed(self, phase: str, work: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                with self._lock:
                    self._spent[phase] += time.thread_time() - begin

        return timed
