"""Harvest in windows: bounded memory, one pass of the subject for all sites, shuffled vectors.

The rows of text are already in random order, so a window of some thousand tokens is a fair sample;
inside a window the vectors are visited in a random order of their own. Window w depends on nothing
but the rows it covers and the seed: a run that was cut off goes on at any window's beginning and
sees exactly what it would have seen. A vector is copied once, from where the subject has just
computed it to where it is trained on.
"""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.activations.buffers import Buffers
from unweave.activations.lengths import buckets, cut_windows, padded
from unweave.activations.streams import Aside
from unweave.activations.workers import Workers
from unweave.subject import Subject


class HarvestSettings(BaseModel):
    """How much is held at once, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    window_tokens: PositiveInt = 8192
    """Tokens whose activations are held in memory at once, for all sites."""
    slice_tokens: PositiveInt = 2048
    """Tokens that one worker runs through the subject at once."""
    store: Literal["float32", "bfloat16", "subject"] = "float32"
    """Number format that vectors are held in; `subject`: as they come, which loses nothing and
    takes half the memory where the subject computes in bfloat16."""
    ahead: bool = True
    """Harvest the next window while one is trained on, where there is more than one worker. It
    takes a second window's memory."""


@dataclass(frozen=True)
class Window:
    """The vectors of one window, position 0 of every row left out, where the subject is."""

    index: int
    """Which window of the run this is."""
    vectors: dict[str, Float[Tensor, "vectors width"]]
    """Per site, in the order of the text; the same row of two sites is the same token."""
    order: Int[Tensor, " vectors"]
    """A random order to visit them in."""
    shuffled: bool = False
    """Whether the vectors lie in their random order already; `order` then counts up."""


@runtime_checkable
class Foreseeing(Protocol):
    """Windows that can be begun on before they are asked for."""

    def foresee(self, index: int) -> None:
        """This window is asked for next."""
        ...


class _Coming(NamedTuple):
    """A window that is being filled."""

    number: int
    slices: list[Future]
    aside: Aside


class Harvester:
    """Runs the subject over rows of tokens, window by window, into buffers that are reused.

    Rows may be of unequal length; those of like length are then run together.
    """

    def __init__(
        self,
        subject: Subject,
        tokens: Int[Tensor, "rows pos"] | Sequence[Int[Tensor, " _"]],
        sites: Sequence[str],
        *,
        workers: Workers,
        seed: int,
        settings: HarvestSettings | None = None,
        shuffled: bool = False,
    ) -> None:
        """With `shuffled`, vectors are laid down in their random order."""
        self.settings = settings or HarvestSettings()
        self._subject, self._sites, self._shuffled = subject, list(sites), shuffled
        self._workers, self._seed = workers, seed
        self._rows = list(tokens)
        self._cuts = cut_windows(list(map(len, self._rows)), self.settings.window_tokens)
        most = max(map(self.vectors_in, range(self.windows)), default=0)
        store = self.settings.store
        dtype = None if store == "subject" else getattr(torch, store)
        self._shown, self._spare = Buffers(most, dtype=dtype), Buffers(most, dtype=dtype)
        self._held: int | None = None
        self._coming: _Coming | None = None

    @property
    def windows(self) -> int:
        """How many windows the text makes; the last one may be shorter."""
        return len(self._cuts)

    def vectors_in(self, index: int) -> int:
        """How many vectors a window holds per site."""
        return sum(len(self._rows[row]) - 1 for row in self._cuts[index])

    def window(self, index: int) -> Window:
        """Harvest one window. Its vectors are overwritten by a call for another one."""
        if self._held != index:
            self._hold(index)
        order, count = self._order(index), self.vectors_in(index)
        return Window(
            index=index,
            vectors={site: self._shown[site][:count] for site in self._sites},
            order=(torch.arange(count) if self._shuffled else order).to(self._subject.device),
            shuffled=self._shuffled,
        )

    def foresee(self, index: int) -> None:
        """Have idle workers begin on the window that is asked for next, beside the present one."""
        if not self.settings.ahead or self._workers.threads == 1:
            return
        if index != self._held and (self._coming is None or self._coming.number != index):
            _abandon(self._coming)
            self._coming = self._begin(index, self._spare, urgent=False)

    def _hold(self, index: int) -> None:
        self._held = None
        coming, self._coming = self._coming, None
        if coming is not None and coming.number == index:
            self._shown, self._spare = self._spare, self._shown
        else:
            _abandon(coming)
            coming = self._begin(index, self._shown, urgent=True)
        try:
            for future in coming.slices:
                future.result()
            coming.aside.join()
        finally:
            _abandon(coming)
        self._held = index

    def _order(self, index: int) -> Int[Tensor, " vectors"]:
        # Drawn on the processor, so that an order is the same on every device.
        generator = torch.Generator().manual_seed((self._seed << 20) + index)
        return torch.randperm(self.vectors_in(index), generator=generator)

    def _begin(self, index: int, into: Buffers, *, urgent: bool) -> _Coming:
        rows = [self._rows[row] for row in self._cuts[index]]
        places = self._places(index, rows)
        aside = Aside(self._subject.device)

        def fill(group: list[int]) -> None:
            with aside.stream():
                self._fill([rows[i] for i in group], [places[i] for i in group], into)

        groups = buckets(list(map(len, rows)), self.settings.slice_tokens)
        return _Coming(index, self._workers.begin(fill, groups, urgent=urgent), aside)

    def _places(self, index: int, rows: Sequence[Tensor]) -> list[Tensor | slice]:
        """Where the vectors of each row go."""
        ends = torch.tensor([len(row) - 1 for row in rows]).cumsum(0).tolist()
        spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        if not self._shuffled:
            return list(spans)
        place = torch.empty(ends[-1], dtype=torch.long)
        place[self._order(index)] = torch.arange(ends[-1])
        place = place.to(self._subject.device)
        return [place[span] for span in spans]

    def _fill(
        self, rows: Sequence[Tensor], places: Sequence[Tensor | slice], into: Buffers
    ) -> None:
        lengths = list(map(len, rows))

        def keep(site: str, tensor: Tensor) -> None:
            into.put(site, tensor, lengths, places)

        show = {site: (lambda tensor, s=site: keep(s, tensor)) for site in self._sites}
        with torch.inference_mode():
            self._workers.twin(self._subject).run(padded(rows), show=show, logits=False)


def _abandon(coming: _Coming | None) -> None:
    """Leave undone what has not begun; nothing writes into the buffers any more afterwards."""
    begun = [future for future in coming.slices if not future.cancel()] if coming else []
    wait(begun)


def start_vectors(
    subject: Subject, tokens: Int[Tensor, "rows pos"], sites: Sequence[str]
) -> dict[str, Float[Tensor, " width"]]:
    """What each site holds at position 0, where every row has the start token and nothing before.

    It is the same vector in every row, so one short row tells it.
    """
    with torch.inference_mode():
        run = subject.run(tokens[:1, :1], capture=sites, logits=False)
    return {site: run.sites[site][0, 0].flatten().float().clone() for site in sites}
