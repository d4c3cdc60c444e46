"""Parts put in the place of modules: the original is not computed while they are there."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.families import Family
from unweave.subject.sites import Geometry, Heads, find_place

_PART = re.compile(r"L(\d+)\.(mlp|attn|q|k)")


@dataclass(frozen=True)
class Slot:
    """Where a part goes."""

    path: str
    """Of the module."""
    heads: Heads | None = None
    """Which slice of a fused projection it is; None where it is the whole module."""


class Sliced(nn.Module):
    """A fused projection with one of query, key and value from a stand-in.

    The original runs for the sake of the other two.
    """

    def __init__(self, original: nn.Module, heads: Heads, part: nn.Module) -> None:
        super().__init__()
        self.original, self.heads, self.part = original, heads, part

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, pos, d_model]` to all that the projection gives."""
        mine = self.part(x).unflatten(-1, (self.heads.heads, self.heads.width))
        return self.heads.write(self.original(x), mine)


def find_slot(
    part: str,
    *,
    subject: str,
    model: nn.Module,
    family: Family | None,
    geometry: Geometry | None,
) -> Slot:
    """Where a part goes: the MLP, the attention output projection, or that of queries or keys.

    Raises:
        UserError: no such part, and no module of that path either.
    """
    match = _PART.fullmatch(part)
    if match and family and geometry and int(match[1]) < geometry.n_layers:
        layer, kind = int(match[1]), match[2]
        if kind in ("q", "k"):
            site = f"blocks.{layer}.attn.{kind}"
            place = find_place(site, subject=subject, model=model, family=family, geometry=geometry)
            return Slot(place.module, place.heads if family.fused else None)
        inner = family.mlp if kind == "mlp" else family.attn_out
        return Slot(f"{family.blocks}.{layer}.{inner}")
    if part and part in dict(model.named_modules()):
        return Slot(part)
    raise UserError(
        f"{subject} has no part {part}; parts are L0.mlp, L0.attn, L0.q, L0.k and so on up to its "
        "last block, or paths of its modules"
    )


@contextmanager
def swapped_modules(
    model: nn.Module, parts: Mapping[Slot, nn.Module], now: list[str]
) -> Iterator[None]:
    """Put each module in its slot for as long as the context lasts, whatever happens in it.

    `now` holds the paths that are swapped at the moment.
    """
    originals: list[tuple[str, nn.Module]] = []
    try:
        for slot, part in parts.items():
            original = model.get_submodule(slot.path)
            originals.append((slot.path, original))
            now.append(slot.path)
            _set(model, slot.path, Sliced(original, slot.heads, part) if slot.heads else part)
        yield
    finally:
        for path, original in reversed(originals):
            _set(model, path, original)
            now.remove(path)


def _set(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
