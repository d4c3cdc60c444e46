"""Settings made from flags, with the flag named that does not do."""

from collections.abc import Callable, Mapping
from typing import TypeVar

from unweave.errors import UserError

Settings = TypeVar("Settings")


def validated(
    kind: Callable[..., Settings],
    fields: Mapping[str, object],
    *,
    flags: Mapping[str, str] | None = None,
) -> Settings:
    """Settings of a kind; `flags` gives the names of flags that differ from their fields'.

    Raises:
        UserError: a value is refused.
    """
    from pydantic import ValidationError

    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "settings"
        flag = (flags or {}).get(field, field.replace("_", "-"))
        raise UserError(f"--{flag}: {first['msg']}") from error
