"""Batches of which every process takes its own rows; all of them together are the batch.

Which rows a process takes changes nothing but where they are computed. Windows of text are
harvested in parts, each process keeping what it computed, so that no activation is ever sent: its
rows of a batch are those that fell to its part, a few more or fewer than its even share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.training.batches import TokenBatch, TokenSource, VectorBatch, VectorSource
from unweave.training.parallel.group import Group


@dataclass(frozen=True)
class VectorShare(VectorBatch):
    """Some rows of a batch of vectors."""

    places: Int[Tensor, " rows"]
    """Where they are in the batch."""
    whole: int
    """How many rows the batch has."""

    def to(self, device: torch.device) -> "VectorShare":
        """The same vectors on a device."""
        return replace(self, vectors=super().to(device).vectors)


@dataclass(frozen=True)
class TokenShare(TokenBatch):
    """Some rows of a batch of text."""

    places: Int[Tensor, " vectors"]
    """Where their vectors are among those of the batch, position 0 of every row left out."""
    whole: int
    """How many vectors the batch has."""


class VectorShares:
    """Every `size`-th row of each batch of a source that all processes hold."""

    def __init__(self, source: VectorSource, rows: Group) -> None:
        self._source, self._rows = source, rows
        self.steps, self.batch = source.steps, source.batch

    def at(self, step: int) -> VectorShare:
        """This process's rows of one step's batch."""
        batch = self._source.at(step)
        mine = slice(self._rows.rank, None, self._rows.size)
        whole = len(next(iter(batch.vectors.values())))
        vectors = {site: rows[mine] for site, rows in batch.vectors.items()}
        return VectorShare(vectors, torch.arange(whole)[mine], whole)

    def first(self) -> VectorBatch:
        """The first batch, whole."""
        return self._source.at(0)


class TokenShares(TokenSource):
    """Every `size`-th row of text of each batch; the subject runs on no others.

    Raises:
        UserError: fewer rows in a batch than processes.
    """

    def __init__(
        self,
        subject: Subject,
        tokens: Int[Tensor, "rows pos"],
        shared: Group,
        *,
        rows: int,
        steps: int,
        capture: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if rows < shared.size:
            raise UserError(
                f"A batch of {rows} rows of text cannot be shared out to {shared.size} processes: "
                "take a larger batch"
            )
        super().__init__(subject, tokens, rows=rows, steps=steps, capture=capture, seed=seed)
        self._shared = shared

    def at(self, step: int) -> TokenShare:
        """This process's rows of one step's batch."""
        rows = self.rows_at(step)
        mine = torch.arange(len(rows))[self._shared.rank :: self._shared.size]
        batch = self.run(rows[mine])
        inside = rows.shape[1] - 1
        places = (mine[:, None] * inside + torch.arange(inside)).flatten()
        return TokenShare(batch.subject, batch.rows, batch.original, places, len(rows) * inside)


class WindowShares:
    """Batches out of windows of text, every window harvested by all processes in parts.

    Gives the batches of `WindowSource(Harvester(...))` over the same text, seed and settings.

    Raises:
        UserError: windows too small to be shared out, or none that fills a batch.
    """

    def __init__(
        self,
        subject: Subject,
        tokens: Int[Tensor, "rows pos"],
        sites: Sequence[str],
        shared: Group,
        *,
        batch: int,
        epochs: int = 1,
        workers: Workers,
        seed: int,
        settings: HarvestSettings | None = None,
    ) -> None:
        settings = settings or HarvestSettings()
        context = tokens.shape[1]
        at_once = max(1, min(settings.window_tokens // context, len(tokens)))
        if at_once < shared.size:
            raise UserError(
                f"A window of {settings.window_tokens} tokens holds {at_once} rows of text, too "
                f"few for {shared.size} processes: raise harvest.window_tokens"
            )
        self._shared, self._sites, self._seed, self.batch = shared, list(sites), seed, batch
        self._inside = context - 1
        windows = tokens.split(at_once)
        self._sizes = [len(window) * self._inside for window in windows]
        spans = [_part(len(window), shared) for window in windows]
        self._spans = [slice(s.start * self._inside, s.stop * self._inside) for s in spans]
        own = [window[span] for window, span in zip(windows, spans, strict=True)]
        # A process has as many rows of every window but the last, so its own windows are these.
        held = settings.model_copy(update={"window_tokens": context * len(own[0])})
        self._harvester = Harvester(
            subject, torch.cat(own), sites, workers=workers, seed=seed, settings=held
        )
        batches = [size // batch for size in self._sizes]
        if not sum(batches):
            raise UserError(f"No window of text fills a batch of {batch} vectors")
        places = [(i, b) for i, n in enumerate(batches) for b in range(n)]
        self._places = places * epochs
        self.steps = len(self._places)
        self._now: tuple[int, Mapping[str, Tensor], Tensor] | None = None

    def at(self, step: int) -> VectorShare:
        """This process's rows of one step's batch."""
        index, place = self._places[step]
        vectors, order = self._window(index, step)
        drawn = order[place * self.batch : (place + 1) * self.batch]
        span = self._spans[index]
        places = ((drawn >= span.start) & (drawn < span.stop)).nonzero()[:, 0]
        mine = drawn[places] - span.start
        own = {site: rows[mine.to(rows.device)] for site, rows in vectors.items()}
        return VectorShare(own, places, len(drawn))

    def first(self) -> VectorBatch:
        """All vectors of the first window, in their random order; all processes must ask."""
        vectors, order = self._window(self._places[0][0], 0)
        return VectorBatch(
            {
                site: self._shared.gather_rows(rows.float())[order.to(rows.device)]
                for site, rows in vectors.items()
            }
        )

    def _window(self, index: int, step: int) -> tuple[Mapping[str, Tensor], Tensor]:
        if self._now is None or self._now[0] != index:
            # A last window of fewer rows than processes has none for some of them.
            empty = index >= self._harvester.windows
            some = self._harvester.window(0 if empty else index).vectors
            vectors = {site: rows[:0] if empty else rows for site, rows in some.items()}
            generator = torch.Generator().manual_seed((self._seed << 20) + index)
            self._now = index, vectors, torch.randperm(self._sizes[index], generator=generator)
            after = next((i for i, _ in self._places[step:] if i != index), index)
            if after < self._harvester.windows:
                self._harvester.foresee(after)
        return self._now[1], self._now[2]


def _part(rows: int, shared: Group) -> slice:
    """This process's rows of so many, contiguous; the first processes have one more."""
    each, rest = divmod(rows, shared.size)
    start = shared.rank * each + min(shared.rank, rest)
    return slice(start, start + each + (shared.rank < rest))
