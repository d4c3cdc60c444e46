"""Getting hold of a network: packaged, fetched, a Hugging Face folder, GGUF, the hub, a module."""

import json
from importlib import resources
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from torch import nn

from unweave.artifact.interrupts import interrupts_kept
from unweave.errors import UserError
from unweave.subject.device import known_device
from unweave.subject.network import Subject
from unweave.subject.quiet import quiet_transformers
from unweave.subject.tokenizer import Tokenizer
from unweave.subject.weight_files import (
    fingerprint_files,
    fingerprint_model,
    refuse_broken_numbers,
    refuse_incomplete,
    weight_files,
)


@runtime_checkable
class _Saves(Protocol):
    def save_pretrained(self, folder: Path) -> object: ...


def load_subject(spec: str, *, dtype: str = "auto", device: str = "cpu") -> Subject:
    """Load a language model by name, path or hub id.

    `spec` is `wren` (ships with the package), a name that `unweave subjects` lists (fetched
    before), a Hugging Face folder, a GGUF file or a hub id. `dtype` `auto` is bfloat16 where the
    processor multiplies it, float32 elsewhere. `device` is where it runs: cpu, cuda or cuda:1.

    Raises:
        UserError: nothing of that name, or what is there is no whole, finite causal language
            model in safetensors or GGUF; no such device.
    """
    from unweave.subject.catalog import find_subject
    from unweave.subject.gguf import load_gguf

    known_device(device)
    number = pick_dtype(dtype, device)
    if spec == "wren":
        return load_folder(wren_folder(), name="wren", dtype=number, device=device)
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".gguf":
        return load_gguf(path, dtype=number, device=device)
    if path.is_dir():
        return load_folder(path, name=_folder_name(path), dtype=number, device=device)
    entry = find_subject(spec)
    if entry is not None and entry.folder is not None:
        if not entry.fetched:
            raise UserError(
                f"{spec} is not on this machine yet; fetch it with: unweave subjects fetch {spec}"
            )
        return load_folder(entry.folder, name=spec, dtype=number, device=device)
    return _load_from_hub(spec, number, device)


def _folder_name(path: Path) -> str:
    """What to call a model by its folder: the last name in the path that tells one from another."""
    names = [part for part in path.resolve().parts if part not in ("hf", "model", "checkpoint")]
    return names[-1]


def wren_folder() -> Path:
    """Where the embedded model lies."""
    folder = Path(str(resources.files("unweave.subject"))) / "wren"
    if not (folder / "config.json").is_file():
        raise UserError(f"the embedded model wren is missing from this installation: no {folder}")
    return folder


def pick_dtype(dtype: str, device: str = "cpu") -> torch.dtype:
    """The number format that `dtype` stands for on `device`."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype in named:
        return named[dtype]
    if dtype != "auto":
        raise UserError(f"dtype is auto, float32 or bfloat16, not {dtype}")
    if not device.startswith("cpu"):
        return torch.bfloat16
    # Without the instructions a bfloat16 product is emulated, many times slower than float32.
    able = torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    )
    return torch.bfloat16 if able else torch.float32


def load_folder(folder: Path, *, name: str, dtype: torch.dtype, device: str = "cpu") -> Subject:
    """Load a Hugging Face folder: config.json, safetensors and, where there is one, a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    files = _checked_folder(folder)
    with quiet_transformers():
        try:
            with interrupts_kept():
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                model, report = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=dtype,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # to be refused below, by name
                )
        except (ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{folder} cannot be loaded: {_one_line(error)}") from error
    refuse_incomplete(report, str(folder))
    refuse_broken_numbers(model, str(folder))
    return Subject(
        model.to(device),
        name=name,
        tokenizer=load_tokenizer(folder),
        fingerprint=lambda: fingerprint_files(files),
    )


def _checked_folder(folder: Path) -> list[Path]:
    """Weight files of a folder whose config announces a causal language model."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} has no config.json, so it is no Hugging Face model folder")
    try:
        config = json.loads(file.read_text("utf-8"))
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a model config with a model_type: {error!r}") from error
    refuse_other_models(config.get("architectures"), model_type, str(folder))
    return weight_files(folder)


def refuse_other_models(architectures: list[str] | None, model_type: str, where: str) -> None:
    """Raise a `UserError` unless the config announces a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    named = architectures or [known]
    causal = {known} if isinstance(known, str) else set(known or ())
    if known is None or not causal & set(named):
        raise UserError(
            f"{where} is not a causal language model that transformers knows: its config says "
            f"{', '.join(map(str, architectures or [model_type]))}"
        )


def load_tokenizer(folder: Path | str) -> Tokenizer | None:
    """The tokenizer that lies beside the weights, or None."""
    from transformers import AutoTokenizer

    if isinstance(folder, Path) and not any(folder.glob("*token*")) | any(folder.glob("*vocab*")):
        return None
    with quiet_transformers():
        try:
            with interrupts_kept():
                return Tokenizer(AutoTokenizer.from_pretrained(folder))
        except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
            raise UserError(
                f"the tokenizer of {folder} cannot be loaded: {_one_line(error)}"
            ) from error


def _load_from_hub(spec: str, dtype: torch.dtype, device: str) -> Subject:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if spec.count("/") != 1 or spec.startswith((".", "/", "~")):
        raise UserError(
            f"there is no subject {spec}: no such folder or file, and not a name that "
            "`unweave subjects` lists; a model of the hub is named OWNER/MODEL"
        )
    kinds = ["*.json", "*.safetensors", "*.model", "*.txt"]
    with quiet_transformers():
        try:
            folder = snapshot_download(spec, allow_patterns=kinds)
        except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
            raise UserError(
                f"there is no folder {spec}, and the hub did not give a model of that name: "
                f"{_one_line(error)}"
            ) from error
    return load_folder(Path(folder), name=spec, dtype=dtype, device=device)


def save_folder(subject: Subject, folder: Path) -> None:
    """Write the model, as it is in memory, and its tokenizer as a Hugging Face folder."""
    with quiet_transformers():
        cast(_Saves, subject.model).save_pretrained(folder)
        if subject.tokenizer:
            subject.tokenizer.inner.save_pretrained(folder)


def wrap_module(model: nn.Module, *, name: str, tokenizer: Tokenizer | None = None) -> Subject:
    """Make a subject of a module in memory: its sites are module paths.

    A Hugging Face model of a family in the table gets all the table's names. The module is frozen
    and put in evaluation mode.
    """
    refuse_broken_numbers(model, name)
    return Subject(
        model, name=name, tokenizer=tokenizer, fingerprint=lambda: fingerprint_model(model)
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
