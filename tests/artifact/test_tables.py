"""Tables and arrays come back exactly, byte for byte the same each time."""

from pathlib import Path

import numpy as np
import pytest

from unweave.artifact.arrays import open_array, save_array
from unweave.artifact.tables import EDGES, Column, read_table, write_table
from unweave.errors import UserError


def edges(n: int) -> dict[str, Column]:
    weight = np.random.default_rng(0).random(n).astype(np.float32)
    return {
        "source": [f"L0.mlp/{i}@012345" for i in range(n)],
        "target": ["logit/1"] * n,
        "weight": weight,
        "kind": ["virtual"] * n,
        "used": np.zeros(n, np.float32),
    }


@pytest.mark.parametrize("n", [0, 1, 70_000])
def test_columns_come_back_exactly(tmp_path: Path, n: int) -> None:
    written = edges(n)
    write_table(tmp_path / "edges", written)
    found = read_table(tmp_path / "edges", EDGES)
    assert list(found) == list(EDGES)
    for name, column in written.items():
        assert list(found[name]) == list(column)


def test_equal_columns_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_table(tmp_path / name, edges(5000))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_columns_are_refused(tmp_path: Path) -> None:
    table = edges(3)
    write_table(tmp_path / "wide", {**table, "weight": np.zeros(3)})
    write_table(tmp_path / "less", {name: table[name] for name in ("source", "target")})
    for name in ("wide", "less"):
        with pytest.raises(UserError, match=rf"{name} has the columns .* are needed"):
            read_table(tmp_path / name, EDGES)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "edges", edges(500))
    content = (tmp_path / "edges").read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        (tmp_path / "short").write_bytes(content[:size])
        with pytest.raises(UserError, match=r"short is truncated or no Parquet table"):
            read_table(tmp_path / "short")
    with pytest.raises(UserError, match=r"No file .*absent"):
        read_table(tmp_path / "absent")


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4)])
def test_arrays_come_back_exactly(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    save_array(tmp_path / "a.npy", array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    if array.size:
        found = open_array(tmp_path / "a.npy", dtype=np.int32, ndim=len(shape))
        assert np.array_equal(found, array)
        assert isinstance(found, np.memmap)


def test_views_are_written_in_order(tmp_path: Path) -> None:
    array = np.arange(12).reshape(3, 4)
    save_array(tmp_path / "a.npy", array.T[1:])
    assert np.array_equal(np.load(tmp_path / "a.npy"), array.T[1:])


def test_arrays_of_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    save_array(path, np.zeros((2, 3), np.int32))
    with pytest.raises(UserError, match=r"int32 with 2 axes where int64 with 2 is needed"):
        open_array(path, dtype=np.int64, ndim=2)
    with pytest.raises(UserError, match=r"int32 with 2 axes where int32 with 1 is needed"):
        open_array(path, dtype=np.int32, ndim=1)
    with pytest.raises(UserError, match=r"No file"):
        open_array(tmp_path / "absent.npy", dtype=np.int32, ndim=1)
    for size in (0, 5, 100, len(path.read_bytes()) - 1):
        (tmp_path / "short.npy").write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match=r"short.npy is truncated or no numpy array"):
            open_array(tmp_path / "short.npy", dtype=np.int32, ndim=2)


def test_an_array_of_objects_is_refused_unopened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"truncated or no numpy array"):
        open_array(tmp_path / "a.npy", dtype=np.int32, ndim=1)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=r"archive of arrays"):
        open_array(tmp_path / "a.npz", dtype=np.int32, ndim=1)
