"""Where training takes its batches from, each a function of the step alone.

A run that was cut off asks for the next step's batch and gets what it would have got.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.activations.window import Foreseeing, Window
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.running import Run


@dataclass(frozen=True)
class VectorBatch:
    """Raw vectors; the same row of two sites is the same token."""

    vectors: Mapping[str, Float[Tensor, "rows width"]]

    def cat(self, sites: Sequence[str]) -> Float[Tensor, "rows width"]:
        """Several sites beside each other."""
        if len(sites) == 1:
            return self.vectors[sites[0]]
        return torch.cat([self.vectors[site] for site in sites], dim=1)

    def to(self, device: torch.device) -> "VectorBatch":
        """The same vectors on a device; itself where they are there already."""
        if all(rows.device == device for rows in self.vectors.values()):
            return self
        return VectorBatch(
            {site: rows.to(device, non_blocking=True) for site, rows in self.vectors.items()}
        )


@dataclass(frozen=True)
class TokenBatch:
    """Rows of text with what the original network does on them, computed once for all."""

    subject: Subject
    """The network, to be run again with dictionaries in place."""
    rows: Int[Tensor, "rows pos"]
    """Token ids."""
    original: Run
    """Its logits and the captured sites, [rows, pos, width]."""

    def to(self, device: torch.device) -> "TokenBatch":
        """Itself: what runs the subject again has to be where the subject is.

        Raises:
            UserError: the subject is elsewhere.
        """
        if self.subject.device != device:
            raise UserError(
                f"{self.subject.name} is on {self.subject.device} and the dictionaries on {device}:"
                " put both on one device to train end to end"
            )
        return self


@runtime_checkable
class VectorSource(Protocol):
    """Batches of vectors."""

    steps: int
    """How many batches there are."""
    batch: int
    """Rows in each."""

    def at(self, step: int) -> VectorBatch:
        """The batch of one step."""
        ...


class ArraySource:
    """Activations that lie in memory, visited in an order of their own in every epoch."""

    def __init__(
        self,
        vectors: Mapping[str, Float[Tensor, "rows width"]],
        *,
        batch: int,
        steps: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        pinned: bool = False,
    ) -> None:
        """With `pinned`, batches are gathered into pages that a GPU reads by itself (`Ahead`)."""
        sizes = {site: len(rows) for site, rows in vectors.items()}
        if len(set(sizes.values())) != 1:
            raise UserError(f"Sites must have as many vectors each, not {sizes}")
        self._vectors, self.batch, self._seed, self._shuffle = vectors, batch, seed, shuffle
        self._pinned = pinned
        self._rows = next(iter(sizes.values()))
        if self._rows < batch:
            raise UserError(f"{self._rows} vectors do not fill one batch of {batch}")
        self._per_epoch = self._rows // batch
        self.steps = steps or self._per_epoch
        self._order: tuple[int, Tensor] | None = None

    def at(self, step: int) -> VectorBatch:
        """The batch of one step; an epoch's last rows that fill no batch are left out."""
        epoch, place = divmod(step, self._per_epoch)
        mine = slice(place * self.batch, (place + 1) * self.batch)
        if not self._shuffle:
            return VectorBatch({site: rows[mine] for site, rows in self._vectors.items()})
        drawn = self._epoch(epoch)[mine]
        return VectorBatch({site: self._take(rows, drawn) for site, rows in self._vectors.items()})

    def _take(self, rows: Tensor, drawn: Tensor) -> Tensor:
        if not self._pinned:
            return rows[drawn]
        shape = len(drawn), *rows.shape[1:]
        return torch.index_select(
            rows, 0, drawn, out=torch.empty(shape, dtype=rows.dtype, pin_memory=True)
        )

    def _epoch(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed((self._seed << 20) + epoch)
            # Drawn on the processor, so that an order is the same on every device.
            order = torch.randperm(self._rows, generator=generator)
            self._order = epoch, order.to(next(iter(self._vectors.values())).device)
        return self._order[1]


@runtime_checkable
class Windows(Protocol):
    """A harvester, or shards that one wrote."""

    @property
    def windows(self) -> int:
        """How many windows there are."""
        ...

    def window(self, index: int) -> Window:
        """One of them."""
        ...

    def vectors_in(self, index: int) -> int:
        """How many vectors it holds per site."""
        ...


class WindowSource:
    """Batches out of windows of text (`activations.window`), window by window.

    As soon as a window is there the next one is begun on, where `windows` can do so.
    """

    def __init__(self, windows: Windows, *, batch: int, epochs: int = 1) -> None:
        self._windows, self.batch = windows, batch
        sizes = [windows.vectors_in(i) // batch for i in range(windows.windows)]
        if not sum(sizes):
            raise UserError(f"No window of text fills a batch of {batch} vectors")
        self._places = [
            (i, b) for _ in range(epochs) for i, n in enumerate(sizes) for b in range(n)
        ]
        self.steps = len(self._places)
        self._now: Window | None = None

    def at(self, step: int) -> VectorBatch:
        """The batch of one step; harvests its window if it is not the last one's."""
        index, place = self._places[step]
        now = self._window(index, step)
        mine = slice(place * self.batch, (place + 1) * self.batch)
        drawn = mine if now.shuffled else now.order[mine]
        return VectorBatch({site: rows[drawn] for site, rows in now.vectors.items()})

    def together(self, step: int) -> int:
        """How many batches, from the one of this step on, are views of the window it lies in."""
        if self._now is None or not self._now.shuffled:
            return 1
        index, place = self._places[step]
        following = enumerate(self._places[step:])
        return next((n for n, at in following if at != (index, place + n)), self.steps - step)

    def first(self) -> VectorBatch:
        """All vectors of the first window, to take scales and first weights from.

        They are not copies: a batch of another window overwrites them.
        """
        return VectorBatch(self._window(self._places[0][0], 0).vectors)

    def _window(self, index: int, step: int) -> Window:
        if self._now is None or self._now.index != index:
            self._now = self._windows.window(index)
            later = (i for i, _ in self._places[step:] if i != index)
            if isinstance(self._windows, Foreseeing) and (after := next(later, None)) is not None:
                self._windows.foresee(after)
        return self._now


class TokenSource:
    """Rows of text drawn at random, with the original's logits and sites."""

    def __init__(
        self,
        subject: Subject,
        tokens: Int[Tensor, "rows pos"],
        *,
        rows: int,
        steps: int,
        capture: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.subject, self._tokens, self.steps, self._seed = subject, tokens, steps, seed
        self._rows, self._capture = rows, list(capture)

    @cached_property
    def batch(self) -> int:
        """Tokens in a batch, the first position of each row left out."""
        return self._rows * (self._tokens.shape[1] - 1)

    def rows_at(self, step: int) -> Int[Tensor, "rows pos"]:
        """The text of one step."""
        generator = torch.Generator().manual_seed((self._seed << 24) + step)
        drawn = torch.randint(len(self._tokens), (self._rows,), generator=generator)
        return self._tokens[drawn.to(self._tokens.device)]

    def at(self, step: int) -> TokenBatch:
        """The batch of one step."""
        return self.run(self.rows_at(step))

    def run(self, rows: Int[Tensor, "rows pos"]) -> TokenBatch:
        """A batch of given text."""
        with torch.no_grad():
            original = self.subject.run(rows, capture=self._capture)
        return TokenBatch(self.subject, rows, original)
