"""Settings made from flags, with the flag named that does not do."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from unweave.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

Settings = TypeVar("Settings", bound="BaseModel")


def validated(kind: type[Settings], flags: Mapping[str, object]) -> Settings:
    """Settings of a kind.

    Raises:
        UserError: a flag's value is refused.
    """
    from pydantic import ValidationError

    try:
        return kind.model_validate(flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise UserError(f"--{name.replace('_', '-')}: {first['msg']}") from error
