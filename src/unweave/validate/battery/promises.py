"""What the checks of a dictionary share: what they look at, and how they say what they found."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError


class Broken(Exception):
    """A promise was not kept; the message says which."""


class NotPromised(Exception):
    """The dictionary makes no promise of this kind; the message says why."""


@dataclass(frozen=True)
class Probe:
    """What the checks are given."""

    make: Callable[[], Any]
    """Builds the dictionary, the same one each time."""
    x: Tensor
    """Raw vectors that it reads."""

    @cached_property
    def coder(self) -> Any:
        """One that was made; checks leave it as it was."""
        return self.make()

    @cached_property
    def code(self) -> SparseCode:
        """Its code of `x`."""
        return self.coder.encode(self.x)

    def decode(self, code: SparseCode) -> Tensor:
        """What a code decodes to, if this dictionary decodes codes alone."""
        spec = getattr(self.coder, "spec", None)
        if not (getattr(spec, "skip", False) or getattr(spec, "layer_norm", False)):
            return self.coder.decode(code)
        try:
            self.coder.decode(code)
        except UserError:
            raise NotPromised("its output needs the input beside the code") from None
        raise Broken("decodes a code without the input that its spec says it needs")


def require(kept: bool, otherwise: str) -> None:
    """Go on if a promise is kept."""
    if not kept:
        raise Broken(otherwise)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-4) -> bool:
    """Equal but for rounding, relative to the largest entry."""
    if left.shape != right.shape:
        return False
    size = max(right.abs().amax().item(), 1e-12) if right.numel() else 1.0
    return bool(((left - right).abs() <= tolerance * size).all())
