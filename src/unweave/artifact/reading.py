"""JSON files against their models: a file that does not fit is told in one sentence."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from unweave.artifact.records import Record
from unweave.errors import UserError

R = TypeVar("R", bound=Record)


def json_in(path: Path) -> object:
    """The content of a JSON file; UserError when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"No file {path}: the artifact is unfinished or damaged") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is no readable JSON ({error})") from error


def record_in(path: Path, model: type[R]) -> R:
    """The content of a JSON file as a record; UserError also when it does not fit."""
    return fitting(model, json_in(path), path)


def fitting(model: type[R], content: object, path: Path) -> R:
    """A part of a JSON file as a record; the UserError names `path` and the place in it."""
    try:
        # Strict, and as JSON: an integer is no string and a list is no tuple.
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "its top"
        raise UserError(f"{path} does not fit its schema at {where}: {first['msg']}") from error
