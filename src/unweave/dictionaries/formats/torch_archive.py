"""Tensors out of the archives that `torch.save` writes, with nothing unpickled.

Such a file is a zip: `data.pkl` says how the tensors are put together, `data/0`, `data/1`, ... hold
their bytes. `tensor_program` reads the first, this page the second.
"""

import math
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from unweave.dictionaries.formats.tensor_program import Laid, Refused, laid_tensors
from unweave.errors import UserError


def load_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of a `torch.save` archive that holds one flat dict of them.

    Raises:
        UserError: not such an archive, damaged, or it asks for anything but tensors; in that case
            nothing it asks for has been run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            program = next((name for name in entries if name.endswith("data.pkl")), None)
            if program is None or any(entry.compress_type for entry in entries.values()):
                raise Refused("an archive that torch.save did not write")
            root = program.removesuffix("data.pkl")
            _check_byte_order(archive, root)
            laid = laid_tensors(archive.read(program))
            return {
                name: _tensor(archive.read(f"{root}data/{place.storage.key}"), place)
                for name, place in laid.items()
            }
    except Refused as refused:
        raise UserError(
            f"{path} is no plain dict of tensors: it holds {refused}, which is not read because "
            "a pickle can run code; nothing of it was run: save the weights again as safetensors"
        ) from refused
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, TypeError, OSError) as error:
        raise UserError(
            f"{path} is no archive that torch.save (1.6 or later) wrote, or it is damaged "
            f"({error}): fetch or make it again"
        ) from error


def _tensor(content: bytes, place: Laid) -> Tensor:
    """The view that `place` describes, copied; it may not reach outside its bytes."""
    storage, offset, size, stride = place
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError("a tensor with impossible strides")
    reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if len(content) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(content)} bytes")
    if 0 in size:
        return torch.empty(size, dtype=storage.dtype)
    if reach >= storage.numel or math.prod(size) > storage.numel:
        raise ValueError(f"a tensor reaches beyond storage {storage.key}")
    flat = torch.frombuffer(bytearray(content), dtype=storage.dtype)
    return flat.as_strided(size, stride, offset).clone()


def _check_byte_order(archive: zipfile.ZipFile, root: str) -> None:
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode("ascii", "replace").strip()
        if order != sys.byteorder:
            raise ValueError(f"its numbers are {order}-endian")
