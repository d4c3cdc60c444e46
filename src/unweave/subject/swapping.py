"""Parts put in the place of modules: the original is not computed while they are there."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from unweave.errors import UserError
from unweave.subject.families import Family

_PART = re.compile(r"L(\d+)\.(mlp|attn)")


def part_path(part: str, *, subject: str, model: nn.Module, family: Family | None) -> str:
    """Path of the module that a part replaces: the MLP, or the attention output projection.

    Raises:
        UserError: no such part, and no module of that path either.
    """
    match = _PART.fullmatch(part)
    if match and family:
        blocks = model.get_submodule(family.blocks)
        if int(match[1]) < len(list(blocks.children())):
            inner = family.mlp if match[2] == "mlp" else family.attn_out
            return f"{family.blocks}.{int(match[1])}.{inner}"
    if part and part in dict(model.named_modules()):
        return part
    raise UserError(
        f"{subject} has no part {part}; parts are L0.mlp, L0.attn and so on up to its last block, "
        "or paths of its modules"
    )


@contextmanager
def swapped_modules(
    model: nn.Module, parts: Mapping[str, nn.Module], now: list[str]
) -> Iterator[None]:
    """Put each module at its path for as long as the context lasts, whatever happens in it.

    `now` holds the paths that are swapped at the moment.
    """
    originals: dict[str, nn.Module] = {}
    try:
        for path, part in parts.items():
            originals[path] = model.get_submodule(path)
            now.append(path)
            _set(model, path, part)
        yield
    finally:
        for path, original in reversed(originals.items()):
            _set(model, path, original)
            now.remove(path)


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
