"""Tensors come back exactly, and nothing but good tensors comes back."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from unweave.artifact.tensors import (
    TensorForm,
    load_tensors,
    looks_like_pickle,
    save_tensors,
    tensor_shapes,
)
from unweave.errors import UserError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_tensors_come_back_exactly(path: Path) -> None:
    wide = torch.randn(4, 6)
    tensors = {
        "half": torch.randn(3).to(torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 7),
        "whole": wide,
        "transposed view": wide.T,
        "slice": wide[1:3],
        "array": np.arange(5, dtype=np.int32),
    }
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = torch.as_tensor(tensor)
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name], expected)
    assert tensor_shapes(path)["transposed view"] == (6, 4)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.arange(i + 1.0) for i in range(20)}
    save_tensors(tmp_path / "a", tensors)
    save_tensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path, tmp_path: Path) -> None:
    save_tensors(path, {"x": torch.arange(100.0)})
    content = path.read_bytes()
    short = tmp_path / "short.safetensors"
    for size in (0, 1, 7, 8, 20, len(content) // 2, len(content) - 1):
        short.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"short.safetensors .*truncated or no safetensors"):
            load_tensors(short)


def test_a_missing_file_is_named(path: Path) -> None:
    for read in (load_tensors, tensor_shapes):
        with pytest.raises(UserError, match=r"No file .*weights.safetensors"):
            read(path)


class Trap:
    """Opening its pickle leaves a mark."""

    opened = False

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return setattr, (Trap, "opened", True)


@pytest.mark.parametrize("form", ["pickle 2", "pickle 5", "torch zip", "torch legacy"])
def test_a_pickle_offered_as_weights_is_refused_unopened(path: Path, form: str) -> None:
    content = {"weight": Trap()}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch zip")
    with pytest.raises(UserError, match=r"weights.safetensors is a Python pickle.*safetensors"):
        load_tensors(path)
    assert not Trap.opened
    assert looks_like_pickle(path)


def test_safetensors_do_not_look_like_a_pickle(path: Path) -> None:
    save_tensors(path, {"x": torch.zeros(16)})  # a header of 0x80-some bytes is no pickle
    assert not looks_like_pickle(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(path: Path, bad: float) -> None:
    save_tensors(path, {"good": torch.zeros(3), "bad": torch.tensor([1.0, bad, 2.0])})
    with pytest.raises(UserError, match=r"weights.safetensors: tensor 'bad' holds 1 values"):
        load_tensors(path)
    assert len(load_tensors(path, finite=False)) == 2


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ({"x": TensorForm((2, 3)), "y": TensorForm(())}, r"lacks the tensor 'y'"),
        ({}, r"holds a tensor 'x' that does not belong"),
        ({"x": TensorForm((2, 4))}, r"'x' has shape \(2, 3\) where \(2, 4\) is needed"),
        ({"x": TensorForm((2,))}, r"'x' has shape \(2, 3\) where \(2\) is needed"),
        ({"x": TensorForm((None, 3), torch.float16)}, r"'x' is torch.float32 where torch.float16"),
    ],
)
def test_what_does_not_fit_is_named(path: Path, expect: dict[str, TensorForm], said: str) -> None:
    save_tensors(path, {"x": torch.zeros(2, 3)})
    with pytest.raises(UserError, match=r"weights.safetensors.*" + said):
        load_tensors(path, expect)
    assert load_tensors(path, {"x": TensorForm((2, None), torch.float32)}).keys() == {"x"}
