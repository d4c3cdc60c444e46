"""What depends on the whole batch or on all latents, when each process holds only a share of them.

Most of a step is a mean over rows or a sum over latents and needs nobody else. What is not (the
choice of the largest scores, a variance, a ratio of two means, how many latents are dead) asks the
functions of this module, which answer for this process alone unless `sharing` says otherwise; then
the answers are those of all processes together (`training.parallel`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.select import Scorer, Selection, largest, largest_of_batch


class Dead(NamedTuple):
    """Dead latents as everybody numbers them."""

    place: Int[Tensor, " dead"]
    """The number of each one of this process."""
    total: int
    """How many there are everywhere."""


@runtime_checkable
class Shares(Protocol):
    """How processes that share a step's rows, its latents or both answer together."""

    def mean(self, local: Tensor) -> Tensor:
        """A mean over all rows, from the mean over one's own; no gradient."""
        ...

    def rows(self, local: Tensor) -> Tensor:
        """All rows in the order of the batch, from one's own; no gradient."""
        ...

    def total(self, local: Tensor) -> Tensor:
        """A sum over all latents, from the sum over one's own; no gradient."""
        ...

    def add_up(self, written: Tensor) -> Tensor:
        """What all latents write, from what one's own do; differentiable."""
        ...

    def to_all(self, read: Tensor) -> Tensor:
        """What all latents read, as it is; its gradient is that from all of them."""
        ...

    def of_rows(
        self,
        scorer: Scorer,
        x: Float[Tensor, "rows d_in"],
        n_latents: int,
        k: int,
        *,
        signed: bool = False,
    ) -> Selection:
        """One's own among the k largest scores of each row; with `signed`, by their size."""
        ...

    def of_batch(
        self, scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int, k: int
    ) -> tuple[Selection, Float[Tensor, " smallest"]]:
        """One's own among the `rows * k` largest positive scores of all; the smallest of these."""
        ...

    def dead(self, mask: Bool[Tensor, " latents"]) -> Dead:
        """The dead, numbered in the order of all latents."""
        ...


class Alone:
    """One process with all rows and all latents."""

    def mean(self, local: Tensor) -> Tensor:
        """See `Shares.mean`."""
        return local

    def rows(self, local: Tensor) -> Tensor:
        """See `Shares.rows`."""
        return local

    def total(self, local: Tensor) -> Tensor:
        """See `Shares.total`."""
        return local

    def add_up(self, written: Tensor) -> Tensor:
        """See `Shares.add_up`."""
        return written

    def to_all(self, read: Tensor) -> Tensor:
        """See `Shares.to_all`."""
        return read

    def of_rows(
        self,
        scorer: Scorer,
        x: Float[Tensor, "rows d_in"],
        n_latents: int,
        k: int,
        *,
        signed: bool = False,
    ) -> Selection:
        """See `Shares.of_rows`."""
        return largest(scorer, x, n_latents, min(k, n_latents), signed=signed)

    def of_batch(
        self, scorer: Scorer, x: Float[Tensor, "rows d_in"], n_latents: int, k: int
    ) -> tuple[Selection, Float[Tensor, " smallest"]]:
        """See `Shares.of_batch`."""
        chosen = largest_of_batch(scorer, x, n_latents, k)
        return chosen, chosen.score.amin(0, keepdim=True) if len(chosen.score) else chosen.score

    def dead(self, mask: Bool[Tensor, " latents"]) -> Dead:
        """See `Shares.dead`."""
        total = int(mask.sum())
        return Dead(torch.arange(total, device=mask.device), total)


ALONE: Shares = Alone()
"""The usual case."""
_now: ContextVar[Shares] = ContextVar("shares", default=ALONE)


def shares() -> Shares:
    """How the processes of the step under way answer together."""
    return _now.get()


@contextmanager
def sharing(among: Shares) -> Iterator[None]:
    """Within it, this thread's steps are shares of a step that `among` puts together."""
    token = _now.set(among)
    try:
        yield
    finally:
        _now.reset(token)


def batch_spread(y: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """Mean squared distance of the batch's rows from their mean, summed over coordinates."""
    y = y.detach()
    middle = shares().mean(y.mean(0))
    return shares().mean((y - middle).square().sum(1).mean())
