"""Gradients put off: kept as the entries that they are sums of, worked out some rows at a time.

A matrix's gradient is as large as the matrix, and with that of its partner a third of what weights
and moments take. Whoever updates the weights reads each row of it once, or twice where its norm has
to be known first: worked out again for every reading, a block of rows at a time, it is never whole
in memory. On a wide dictionary that costs no time either, since a whole one would be written to
memory and read from there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.dictionaries.code import ByLatent, Support
from unweave.dictionaries.kernels.native import calls as native

BLOCK = 4096
"""Rows that are worked out at once."""


class Entries(NamedTuple):
    """What a gradient is the sum of: weighted rows, in the order of latents."""

    weight: Float[Tensor, " active"]
    rows: Float[Tensor, "rows d"]
    at: ByLatent

    def block(self, start: int, stop: int) -> Float[Tensor, "block d"]:
        """The gradient of the latents from `start` to `stop`."""
        bounds = self.at.bounds[start : stop + 1]
        return native.bags(self.rows, self.at.row, self.weight, bounds, self.at.order)


class PutOff:
    """The gradients that have been put off in one step, by parameter."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._entries: dict[int, list[Entries]] = {}

    def takes(self, weight: Tensor) -> bool:
        """Whether this one's gradient is to be put off: that of a parameter worth the trouble."""
        large = weight.numel() * weight.element_size() >= self._at_least
        return large and isinstance(weight, nn.Parameter) and native.able(weight)

    def add(self, parameter: Tensor, weight: Tensor, rows: Tensor, support: Support) -> None:
        """Put off a sum over the rows in which each latent is active, weighted."""
        entries = Entries(weight.contiguous(), rows, support.by_latent)
        self._entries.setdefault(id(parameter), []).append(entries)

    def of(self, parameter: Tensor) -> list[Entries]:
        """What has been put off for a parameter."""
        return self._entries.get(id(parameter), [])


_now: ContextVar[PutOff | None] = ContextVar("put_off", default=None)


@contextmanager
def putting_off(at_least: int | None) -> Iterator[PutOff | None]:
    """Within it, what this thread runs puts off gradients of parameters of `at_least` bytes.

    They do not come to lie in `.grad`; None: nothing is put off.
    """
    token = _now.set(None if at_least is None else PutOff(at_least))
    try:
        yield _now.get()
    finally:
        _now.reset(token)


def putting_off_for(weight: Tensor) -> Callable[[Tensor, Tensor, Support], None] | None:
    """What takes the gradient of this one, if it is to be put off."""
    store = _now.get()
    return partial(store.add, weight) if store is not None and store.takes(weight) else None


def block_of(
    entries: list[Entries], listed: Tensor | None, start: int, stop: int
) -> Float[Tensor, "block d"]:
    """A block of what was put off, with the rows of a coalesced sparse tensor added."""
    gradient = entries[0].block(start, stop)
    for more in entries[1:]:
        gradient += more.block(start, stop)
    if listed is not None:
        which = listed.indices()[0]
        first, last = torch.searchsorted(which, torch.tensor([start, stop])).tolist()
        gradient.index_add_(0, which[first:last] - start, listed.values()[first:last])
    return gradient
