"""Plain numpy arrays in .npy files: written whole, opened without being read."""

from pathlib import Path

import numpy as np

from unweave.artifact.atomic import new_file
from unweave.errors import UserError


def save_array(path: Path, array: np.ndarray) -> None:
    """Write one array, C order, whole or not at all; equal arrays give equal bytes."""
    array = np.asarray(array, order="C")
    with new_file(path) as partial, partial.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
        # Not array.tofile: on a full disk it raises an error that does not say so.
        handle.write(array.reshape(-1).view(np.uint8))


def open_array(path: Path, *, dtype: np.typing.DTypeLike, ndim: int) -> np.ndarray:
    """Map an array read-only into memory; UserError unless it has this type and this many axes."""
    if not path.is_file():
        raise UserError(f"No file {path}: it should hold a numpy array")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is truncated or no numpy array ({error}): make it again") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or array.ndim != ndim:
        found = f"{array.dtype} with {array.ndim} axes" if isinstance(array, np.ndarray) else "more"
        raise UserError(f"{path} holds {found} where {np.dtype(dtype)} with {ndim} is needed")
    return array
