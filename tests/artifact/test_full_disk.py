"""A disk that really is full: every kind of file says so and leaves nothing behind."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from unweave.artifact.arrays import save_array
from unweave.artifact.atomic import new_folder, write_bytes, write_json
from unweave.artifact.descriptions import Description, write_descriptions
from unweave.artifact.feature_id import FeatureId
from unweave.artifact.firings import write_firings
from unweave.artifact.tables import write_table
from unweave.artifact.tensors import save_tensors
from unweave.errors import UserError

NOISE = np.random.default_rng(0).random(100_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 kB, or a skip where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def _folder(path: Path) -> None:
    with new_folder(path) as partial:
        write_bytes(partial / "a", b"x")
        write_bytes(partial / "b", NOISE.tobytes())


def _descriptions(path: Path) -> None:
    said = [
        Description(FeatureId("L0.mlp", latent, "012345"), f"word {NOISE[latent]}", {}, {}, 1.0)
        for latent in range(3000)
    ]
    write_descriptions(path, said)


def _firings(path: Path) -> None:
    n = len(NOISE)
    write_firings(path, np.zeros(n, np.int32), NOISE, np.arange(n + 1), 1)


WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: write_bytes(path, NOISE.tobytes()),
    "json": lambda path: write_json(path, NOISE.tolist()),
    "tensors": lambda path: save_tensors(path, {"x": NOISE}),
    "array": lambda path: save_array(path, NOISE),
    "table": lambda path: write_table(path, {"x": NOISE}),
    "descriptions": _descriptions,
    "folder": _folder,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_nothing_half_written(small_disk: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"disk is full .* make room"):
        WRITERS[kind](small_disk / "file")
    assert list(small_disk.iterdir()) == []
    write_bytes(small_disk / "file", b"there is room for this")


def test_firings_on_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"disk is full"):
        _firings(small_disk / "firings")
