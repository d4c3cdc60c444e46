"""GGUF files: llama.cpp's quantised weights, loaded as plain floats."""

import contextlib
import io
from pathlib import Path

import torch

from unweave.artifact.interrupts import interrupts_kept
from unweave.errors import UserError
from unweave.subject.network import Subject
from unweave.subject.quiet import quiet_transformers
from unweave.subject.tokenizer import Tokenizer
from unweave.subject.weight_files import (
    fingerprint_model,
    refuse_broken_numbers,
    refuse_incomplete,
)

MAGIC = b"GGUF"


def load_gguf(file: Path, *, dtype: torch.dtype, device: str = "cpu") -> Subject:
    """Load a GGUF file; the weights are what its quantised numbers stand for.

    Raises:
        UserError: no such file, not GGUF, truncated, of an architecture that transformers cannot
            read, or the packages that read GGUF are not installed.
    """
    check_gguf(file)
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The reader draws its own progress bar on stderr, whatever transformers is told.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        try:
            with interrupts_kept():
                model, report = AutoModelForCausalLM.from_pretrained(
                    file.parent,
                    gguf_file=file.name,
                    dtype=dtype,
                    quantization_config=GgufConfig(dequantize=True),
                    local_files_only=True,
                    output_loading_info=True,
                )
                tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        except Exception as error:  # the reader raises whatever a hostile file makes it trip over
            text = " ".join(str(error).split())[:300]
            raise UserError(
                f"{file} cannot be loaded: {text or type(error).__name__}; it is truncated, or of "
                "an architecture that transformers does not read from GGUF"
            ) from error
    refuse_incomplete(report, str(file))
    refuse_broken_numbers(model, str(file))
    # What the flag leaves behind would keep the model from being saved as plain floats.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    return Subject(
        model.to(device),
        name=file.stem,
        tokenizer=Tokenizer(tokenizer),
        fingerprint=lambda: fingerprint_model(model),
    )


def check_gguf(file: Path) -> None:
    """Raise a `UserError` unless the file is there, is GGUF and can be read here."""
    if not file.is_file():
        raise UserError(f"there is no file {file}")
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{file} is named .gguf but is not a GGUF file")
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"reading {file} needs the package {error.name}; install it with: "
            "pip install 'unweave[gguf]'"
        ) from error
