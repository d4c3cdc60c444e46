"""Settings from a TOML file with flags over it, and what does not do named where it stands."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from unweave.cli.counts import parse_count
from unweave.errors import UserError

Settings = TypeVar("Settings")

_COUNTS = ("tokens", "batch", "latents")
"""What may be written as `400k` in a file too."""


def configured(
    kind: Callable[..., Settings], flags: Mapping[str, object], config: Path | None
) -> Settings:
    """Settings of a kind: what the file says, flags over it, defaults for the rest.

    Raises:
        UserError: the file cannot be read, or a value in it or of a flag is refused.
    """
    from pydantic import ValidationError

    try:
        return kind(**{**(_settings_in(config) if config else {}), **flags})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = [str(step) for step in first["loc"]] or ["settings"]
        flagged = path[0] in flags or config is None
        where = f"--{path[0].replace('_', '-')}" if flagged else f"{config}, {'.'.join(path)}"
        raise UserError(f"{where}: {first['msg']}") from error


def _settings_in(config: Path) -> dict[str, object]:
    import tomllib

    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8"))
        for name in _COUNTS:
            if isinstance(settings.get(name), str):
                settings[name] = parse_count(settings[name])
    except OSError as error:
        raise UserError(f"--config {config} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"--config {config} is no TOML file of settings ({error})") from error
    return settings
