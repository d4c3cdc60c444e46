"""Weights on disk, checked before anything is built from them: safetensors only, never a pickle."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unweave.artifact.interrupts import interrupts_kept
from unweave.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder, each readable and whole.

    Raises:
        UserError: there are none, only pickles, or one is missing or damaged.
    """
    if (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        files = [folder / name for name in _shards(folder / INDEX)]
    else:
        raise UserError(_no_weights(folder))
    for file in files:
        _check_whole(file)
    return files


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight files: {error}") from error
    if any(Path(name).name != name for name in names):
        raise UserError(f"{index} names a weight file outside its own folder")
    return names


def _no_weights(folder: Path) -> str:
    pickles = sorted(file.name for kind in PICKLES for file in folder.glob(kind))
    if pickles:
        return (
            f"{folder} holds its weights only as a pickle ({pickles[0]}), and loading a pickle "
            "can run any code; convert it to safetensors first (save_pretrained does)"
        )
    if ggufs := sorted(folder.glob("*.gguf")):
        return f"{folder} has no {SINGLE}; to load its GGUF file name the file itself: {ggufs[0]}"
    return f"{folder} has no {SINGLE}, so there are no weights to load"


def _check_whole(file: Path) -> None:
    if not file.is_file():
        raise UserError(f"weight file {file} is missing though the index names it")
    try:
        with interrupts_kept(), safe_open(file, framework="pt") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is truncated or not a safetensors file ({error}); fetch or write it again"
        ) from error


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                yield name, tensors.get_tensor(name)


def fingerprint_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hex sha256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_files(files: Iterable[Path]) -> str:
    """Fingerprint of the tensors as they are stored, whatever they are loaded as."""
    with interrupts_kept():
        return fingerprint_tensors(_tensors(files))


def fingerprint_model(model: nn.Module) -> str:
    """Fingerprint of the parameters and buffers of a module."""
    return fingerprint_tensors(model.state_dict().items())


def refuse_broken_numbers(model: nn.Module, where: str) -> None:
    """Raise a `UserError` that names the first weight with a NaN or an infinity."""
    for name, weight in model.named_parameters():
        # The sum is finite only if every number is, up to overflow: look closer only then.
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise UserError(f"{where}: weight {name} has {bad} numbers that are NaN or infinite")


def refuse_incomplete(report: dict, where: str) -> None:
    """Raise a `UserError` where weights were missing or misshapen and would be left at random."""
    if missing := sorted(report.get("missing_keys") or ()):
        raise UserError(
            f"{where}: {len(missing)} weights are missing from its safetensors, {missing[0]} "
            "among them; they would be random numbers"
        )
    if wrong := sorted(report.get("mismatched_keys") or ()):
        name, found, asked = wrong[0]
        raise UserError(
            f"{where}: weight {name} is {tuple(found)} where its config asks for {tuple(asked)}"
        )
