"""What lies beside weights: the `spec.json` from which a saved object is built again."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from unweave.errors import UserError

S = TypeVar("S", bound=BaseModel)


def spec_in(folder: Path, model: type[S], what: str) -> S:
    """The spec of `what` is saved in a folder ("one dictionary").

    Raises:
        UserError: no `spec.json`, or one that does not fit; it names the place in it.
    """
    path = folder / "spec.json"
    if not path.is_file():
        raise UserError(f"No spec.json in {folder}: point at the folder of {what}")
    try:
        return model.model_validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise UserError(f"{path} does not describe {what}, at {where}: {first['msg']}") from error
