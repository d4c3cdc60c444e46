"""What a foreign folder says of itself, checked before anything is built from it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from unweave.artifact.tensors import TensorForm
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec
from unweave.dictionaries.formats.plain_weights import PlainWeights, dictionary_of
from unweave.errors import UserError

MOST_BYTES = 1 << 22
"""Longer than any configuration is."""


class Foreign(BaseModel):
    """Settings of another library: what is not asked for is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


Found = TypeVar("Found", bound=Foreign)


def read_json(path: Path, model: type[Found]) -> Found:
    """The settings in a JSON file; a UserError says what is missing or wrong."""
    try:
        content = json.loads(config_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): fetch or make it again") from error
    return checked(path, content, model)


def config_text(path: Path) -> str:
    """The text of a configuration file; a UserError where it cannot be read or is absurdly long."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes: that is no configuration")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: fetch or make it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); it belongs there") from error


def checked(path: Path, content: object, model: type[Found]) -> Found:
    """`content` as settings; a UserError names the first thing that is wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise UserError(f"{path}, at {where}: {first['msg']}") from error


def check_shapes(
    path: Path, found: Mapping[str, Tensor], expect: Mapping[str, TensorForm]
) -> dict[str, Tensor]:
    """Exactly the expected tensors, as float32, from a file that is no safetensors file."""
    for name, form in expect.items():
        if name not in found:
            some = ", ".join(list(found)[:8]) or "none"
            raise UserError(f"{path} lacks the tensor {name!r}; it holds: {some}")
        shape = tuple(found[name].shape)
        wanted = [want if want is not None else have for want, have in zip(form.shape, shape)]  # noqa: B905
        if list(shape) != wanted or len(shape) != len(form.shape):
            raise UserError(f"{path}: tensor {name!r} has shape {shape}, not {form.shape}")
        if found[name].is_floating_point() and not bool(found[name].isfinite().all()):
            raise UserError(f"{path}: tensor {name!r} holds values that are NaN or infinite")
    return {name: found[name].float() for name in expect}


def built(path: Path, weights: PlainWeights, **content: object) -> Dictionary:
    """The dictionary of a foreign folder, from the fields of its spec.

    Raises:
        UserError: settings that contradict each other.
    """
    given = {"pre_bias": weights.pre_bias, "skip": weights.W_skip is not None, **content}
    given |= {"n_latents": len(weights.b_enc), "decoder": "free"}
    try:
        spec = DictionarySpec.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        raise UserError(f"{path}{', at ' * bool(where)}{where}: {first['msg']}") from error
    return dictionary_of(spec, weights)


def one_of_each(dictionary: Dictionary, what: str) -> DictionarySpec:
    """The spec of a dictionary that reads one site and writes one; a UserError for others."""
    spec = dictionary.spec
    if len(spec.reads) != 1 or len(spec.writes) != 1:
        raise UserError(
            f"{spec.name} reads {len(spec.reads)} sites and writes {len(spec.writes)}; {what} "
            "holds dictionaries of one site each: write it as circuit_tracer if it is a layer of "
            "a cross-layer transcoder"
        )
    return spec


def cannot_hold(spec: DictionarySpec, what: str, reason: str) -> UserError:
    """The error for a dictionary that a format cannot hold."""
    return UserError(f"{spec.name} cannot be written as {what}: {reason}")


def k_of(spec: DictionarySpec) -> int:
    """Latents per token, for an activation that chooses them."""
    return int(spec.activation.model_dump()["k"])
