"""Plain numpy arrays in .npy files: written whole, opened without being read."""

from pathlib import Path

import numpy as np

from unweave.artifact.atomic import new_file
from unweave.errors import UserError


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array, C order, whole or not at all; equal arrays give equal bytes."""
    array = np.asarray(array, order="C")
    with new_file(path) as partial, partial.open("wb") as handle:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(handle, header)
        # Not array.tofile: on a full disk it raises an error that does not say so.
        handle.write(array.reshape(-1).view(np.uint8).data)


def open_array(path: Path, *, dtype: np.typing.DTypeLike, ndim: int) -> np.ndarray:
    """Map an array read-only into memory; UserError unless it has this type and this many axes."""
    if not path.is_file():
        raise UserError(f"No file {path}: it should hold a numpy array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is truncated or no numpy array ({error})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive of arrays where a single .npy array is needed")
    if array.dtype != np.dtype(dtype) or array.ndim != ndim:
        found, want = f"{array.dtype} with {array.ndim} axes", f"{np.dtype(dtype)} with {ndim}"
        raise UserError(f"{path} holds {found} where {want} is needed")
    return array
