"""Unfinished training on disk: saved whole, found again, removed when the work is done.

Two folders take turns, so that the last whole checkpoint survives a kill in the middle of writing
the next: a checkpoint counts once its `state.json`, written last, is there.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import load_tensors, save_tensors

Metrics = list[dict[str, float | int | str]]


class Progressed(NamedTuple):
    """Where a run stood."""

    done: int
    """Units of work (windows, steps) that need not be done again."""
    metrics: Metrics
    """What had been logged until then."""
    tensors: dict[str, dict[str, Tensor]]
    """State by name."""


class Checkpoints:
    """Checkpoints of one stage in one folder, written at most every `seconds`."""

    def __init__(self, folder: Path | None, *, seconds: float = 180.0) -> None:
        self._folder, self._seconds = folder, seconds
        self._last = time.monotonic()

    def latest(self) -> Progressed | None:
        """The newest whole checkpoint, if there is one."""
        found = [slot for slot in self._slots() if (slot / "state.json").is_file()]
        if not found:
            return None
        states = [(json.loads((slot / "state.json").read_text()), slot) for slot in found]
        state, slot = max(states, key=lambda pair: pair[0]["done"])
        tensors = {name: load_tensors(slot / f"{name}.safetensors") for name in state["names"]}
        return Progressed(state["done"], state["metrics"], tensors)

    def offer(
        self, done: int, metrics: Metrics, state: Callable[[], Mapping[str, dict[str, Tensor]]]
    ) -> None:
        """Write a checkpoint if the last one is old enough; `state` is asked only then."""
        if self._folder is None or time.monotonic() - self._last < self._seconds:
            return
        tensors = state()
        slot = min(self._slots(), key=age_of)
        shutil.rmtree(slot, ignore_errors=True)
        slot.mkdir(parents=True)
        for name, group in tensors.items():
            save_tensors(slot / f"{name}.safetensors", group)
        names = sorted(tensors)
        write_json(slot / "state.json", {"done": done, "metrics": metrics, "names": names})
        self._last = time.monotonic()

    def _slots(self) -> list[Path]:
        return [] if self._folder is None else [self._folder / "a", self._folder / "b"]


def age_of(slot: Path) -> float:
    """How far the run was when a slot was written; -1 where there is no whole checkpoint."""
    state = slot / "state.json"
    return json.loads(state.read_text())["done"] if state.is_file() else -1.0
