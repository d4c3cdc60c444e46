"""Weights and other tensors in safetensors files, checked on the way in.

A pickle can run code when opened, so none is ever opened: content that looks like one is refused
by its first bytes, whatever the file is called.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unweave.artifact.atomic import new_file
from unweave.artifact.interrupts import interrupts_kept
from unweave.errors import UserError


class TensorForm(NamedTuple):
    """What a tensor must look like."""

    shape: tuple[int | None, ...]
    """Size of each axis; None takes any."""
    dtype: torch.dtype | None = None
    """Element type; None takes any."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor | np.ndarray]) -> None:
    """Write tensors to `path`, whole or not at all; equal tensors give equal bytes.

    No metadata is written: safetensors keeps it in no fixed order.
    """
    seen: set[int] = set()
    plain = {name: _plain(tensor, seen) for name, tensor in tensors.items()}
    with new_file(path) as partial:
        save_file(plain, partial)


def load_tensors(
    path: Path, expect: Mapping[str, TensorForm] | None = None, *, finite: bool = True
) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file.

    With `expect`, exactly those names must be there, in those shapes and types. Unless `finite` is
    False, a NaN or an infinity is refused. Every failure is a UserError that names the file and,
    where one is at fault, the tensor.
    """
    try:
        with interrupts_kept(), _opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    if expect is not None:
        _check_forms(path, {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}, expect)
    if finite:
        for name, tensor in tensors.items():
            _check_finite(path, name, tensor)
    return tensors


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor, from the header alone; UserError as `load_tensors`."""
    try:
        with interrupts_kept(), _opened(path) as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except SafetensorError as error:
        raise _unreadable(path, error) from error


def looks_like_pickle(path: Path) -> bool:
    """Whether the content, not the name, is a Python pickle or an archive that holds one.

    True for a bare pickle of protocol 2 or later, for `torch.save` files (zip) and for the older
    torch form, which is a pickle.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start[:4] == b"PK\x03\x04":
        return b"data.pkl" in start or b"/data" in start or b".pkl" in start
    return len(start) > 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _opened(path: Path) -> "safe_open":
    if not path.is_file():
        raise UserError(f"No file {path}: it should hold tensors in safetensors form")
    if looks_like_pickle(path):
        raise UserError(
            f"{path} is a Python pickle, which can run code when opened, so it was not: "
            f"save the weights as safetensors and point at that file"
        )
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}): check its permissions") from error


def _unreadable(path: Path, error: SafetensorError) -> UserError:
    return UserError(
        f"{path} ({path.stat().st_size:,} bytes) is truncated or no safetensors file ({error}): "
        f"fetch or make it again"
    )


def _check_forms(
    path: Path,
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    expect: Mapping[str, TensorForm],
) -> None:
    for name in sorted(expect.keys() - found.keys()):
        some = ", ".join(list(found)[:6]) or "none"
        raise UserError(f"{path} lacks the tensor {name!r}; it holds {len(found)}: {some}")
    for name in sorted(found.keys() - expect.keys()):
        raise UserError(f"{path} holds a tensor {name!r} that does not belong there")
    for name, form in expect.items():
        shape, dtype = found[name]
        fits = len(shape) == len(form.shape) and all(
            want is None or want == have for want, have in zip(form.shape, shape, strict=True)
        )
        if not fits:
            want = ", ".join("any" if size is None else str(size) for size in form.shape)
            raise UserError(f"{path}: tensor {name!r} has shape {shape} where ({want}) is needed")
        if form.dtype is not None and dtype != form.dtype:
            raise UserError(f"{path}: tensor {name!r} is {dtype} where {form.dtype} is needed")


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    raise UserError(
        f"{path}: tensor {name!r} holds {bad:,} values that are NaN or infinite "
        f"out of {tensor.numel():,}: the file is damaged or its training diverged"
    )


def _plain(tensor: Tensor | np.ndarray, seen: set[int]) -> Tensor:
    """A contiguous CPU tensor that shares memory with nothing else in the file (its rule)."""
    held = torch.from_numpy(np.array(tensor)) if isinstance(tensor, np.ndarray) else tensor
    held = held.detach().cpu().contiguous()
    storage = held.untyped_storage()
    shared = storage.data_ptr() in seen or storage.nbytes() != held.nbytes
    seen.add(storage.data_ptr())
    return held.clone() if shared else held
