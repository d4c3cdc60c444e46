"""Windows on disk, for those who want to visit activations more than once.

A shard is one safetensors file per window with a tensor per site, written whole or not at all; a
folder of shards answers `window(i)` just as a harvester does.
"""

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from unweave.activations.window import Foreseeing, Window
from unweave.artifact.tensors import load_tensors, save_tensors, tensor_shapes
from unweave.errors import UserError
from unweave.progress import QUIET, Progress

_ORDER = "order"


@runtime_checkable
class Windowed(Protocol):
    """Whoever answers `window(i)`: a harvester, of one subject or of several, or other shards."""

    @property
    def windows(self) -> int:
        """How many windows there are."""
        ...

    def window(self, index: int) -> Window:
        """One of them; its vectors may be overwritten by the next call."""
        ...


def write_shards(harvester: Windowed, folder: Path, *, progress: Progress = QUIET) -> Path:
    """Harvest every window into `folder`; windows already there are kept, so it resumes."""
    folder.mkdir(parents=True, exist_ok=True)
    with progress.task("Writing activations", total=harvester.windows, unit="windows") as advance:
        for index in range(harvester.windows):
            path = folder / f"window-{index:06d}.safetensors"
            if not path.exists():
                window = harvester.window(index)
                if isinstance(harvester, Foreseeing) and index + 1 < harvester.windows:
                    harvester.foresee(index + 1)  # computed while this one is written
                save_tensors(path, {**window.vectors, _ORDER: window.order})
            advance(1)
    return folder


class Shards:
    """Read windows that `write_shards` wrote."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("window-*.safetensors"))
        if not self._paths:
            raise UserError(f"No activation shards in {folder}: write_shards makes them")

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self._paths)

    def vectors_in(self, index: int) -> int:
        """How many vectors a window holds per site; only the file's header is read."""
        return tensor_shapes(self._paths[index])[_ORDER][0]

    def window(self, index: int) -> Window:
        """Read one window."""
        tensors = load_tensors(self._paths[index])
        order = tensors.pop(_ORDER).to(torch.long)
        return Window(index=index, vectors=tensors, order=order)
