"""Checkpoints of a run of many processes: written by one for all, or by every shard for itself.

One process decides when, so that all agree. The files of a run without shards are those of a run
of one process, and either goes on from the other's. With shards each writes its own latents and
moments, `NAME-0of2.safetensors`; as many shards go on from the same bits, and any other number
puts them together and deals them out anew. The folder must be one that all processes see.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from unweave.artifact.atomic import write_json
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.training.checkpoint import Checkpoints, Metrics, Progressed, age_of
from unweave.training.parallel.grid import Grid
from unweave.training.parallel.sharded import dealt, joined


class SharedCheckpoints(Checkpoints):
    """See `Checkpoints`; every process of the grid must ask in turn."""

    def __init__(self, folder: Path | None, grid: Grid, *, seconds: float = 180.0) -> None:
        super().__init__(folder, seconds=seconds)
        self._grid = grid

    def latest(self) -> Progressed | None:
        """The newest whole checkpoint, as this process's part of it."""
        self._grid.everyone.wait()  # nobody reads what another still writes
        found = [slot for slot in self._slots() if (slot / "state.json").is_file()]
        if not found:
            return None
        slot = max(found, key=age_of)
        state = json.loads((slot / "state.json").read_text())
        shards = state.get("shards", 1)
        tensors = {name: self._part(slot, name, shards) for name in state["names"]}
        return Progressed(state["done"], state["metrics"], tensors)

    def offer(
        self, done: int, metrics: Metrics, state: Callable[[], Mapping[str, dict[str, Tensor]]]
    ) -> None:
        """Write a checkpoint if rank 0 finds the last one old enough."""
        if self._folder is None or not self._due():
            return
        latents, everyone = self._grid.latents, self._grid.everyone
        tensors = state()
        ages = [age_of(slot) for slot in self._slots()]
        slot = self._slots()[ages.index(min(ages))]
        everyone.wait()  # all have looked: now it may go
        if self._grid.first:
            shutil.rmtree(slot, ignore_errors=True)
            slot.mkdir(parents=True)
        everyone.wait()
        if self._grid.rows.rank == 0:
            for name, group in tensors.items():
                save_tensors(slot / _file(name, latents.rank, latents.size), group)
        everyone.wait()
        if self._grid.first:
            content = {"done": done, "metrics": metrics, "names": sorted(tensors)}
            write_json(slot / "state.json", content | {"shards": latents.size})
        self._last = time.monotonic()

    def _due(self) -> bool:
        old = self._grid.first and time.monotonic() - self._last >= self._seconds
        return bool(self._grid.everyone.sum(torch.tensor([int(old)])))

    def _part(self, slot: Path, name: str, shards: int) -> dict[str, Tensor]:
        mine = self._grid.latents
        if shards == mine.size:
            return load_tensors(slot / _file(name, mine.rank, shards))
        files = [slot / _file(name, shard, shards) for shard in range(shards)]
        whole = joined([load_tensors(file) for file in files])
        return {key: dealt(key, tensor, mine) for key, tensor in whole.items()}


def _file(name: str, shard: int, shards: int) -> str:
    return f"{name}.safetensors" if shards == 1 else f"{name}-{shard}of{shards}.safetensors"
