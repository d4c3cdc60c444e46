"""Harvest in windows: bounded memory, one pass of the subject for all sites, shuffled vectors.

The rows of text are already in random order, so a window of some thousand tokens is a fair sample;
inside a window the vectors are visited in a random order of their own. Window w depends on nothing
but the rows it covers and the seed: a run that was cut off goes on at any window's beginning and
sees exactly what it would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.subject import Subject


class HarvestSettings(BaseModel):
    """How much is held at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    window_tokens: PositiveInt = 8192
    """Tokens whose activations are held in memory at once, for all sites."""
    slice_tokens: PositiveInt = 512
    """Tokens that one worker runs through the subject at once."""


@dataclass(frozen=True)
class Window:
    """The vectors of one window, position 0 of every row left out, where the subject is."""

    index: int
    """Which window of the run this is."""
    vectors: dict[str, Float[Tensor, "vectors width"]]
    """Per site, in the order of the text; the same row of two sites is the same token."""
    order: Int[Tensor, " vectors"]
    """A random order to visit them in."""


class Harvester:
    """Runs the subject over rows of tokens, window by window, into buffers that are reused."""

    def __init__(
        self,
        subject: Subject,
        tokens: Int[Tensor, "rows pos"],
        sites: Sequence[str],
        *,
        workers: Workers,
        seed: int,
        settings: HarvestSettings | None = None,
    ) -> None:
        self.settings = settings or HarvestSettings()
        self._subject, self._tokens, self._sites = subject, tokens, list(sites)
        self._workers, self._seed = workers, seed
        self._buffers: dict[str, Tensor] = {}
        context = tokens.shape[1]
        self._rows = max(1, min(self.settings.window_tokens // context, tokens.shape[0]))
        self._slice = max(1, self.settings.slice_tokens // context)

    @property
    def windows(self) -> int:
        """How many windows the text makes; the last one may be shorter."""
        return -(-self._tokens.shape[0] // self._rows)

    def vectors_in(self, index: int) -> int:
        """How many vectors a window holds per site."""
        rows = min(self._rows, self._tokens.shape[0] - index * self._rows)
        return rows * (self._tokens.shape[1] - 1)

    def window(self, index: int) -> Window:
        """Harvest one window. Its vectors are overwritten by the next call."""
        rows = self._tokens[index * self._rows : (index + 1) * self._rows]
        starts = range(0, rows.shape[0], self._slice)
        for _ in self._workers.map(lambda start: self._fill(rows, start), starts):
            pass
        count = self.vectors_in(index)
        order = torch.Generator().manual_seed((self._seed << 20) + index)
        return Window(
            index=index,
            vectors={site: self._buffers[site][:count] for site in self._sites},
            order=torch.randperm(count, generator=order).to(self._subject.device),
        )

    def _fill(self, rows: Tensor, start: int) -> None:
        part = rows[start : start + self._slice]
        with torch.inference_mode():
            run = self._workers.twin(self._subject).run(part, capture=self._sites, logits=False)
        per_row = rows.shape[1] - 1
        into = slice(start * per_row, (start + part.shape[0]) * per_row)
        for site in self._sites:
            captured = run.sites[site][:, 1:].flatten(0, 1).flatten(1)
            self._buffer(site, captured.shape[1])[into] = captured

    def _buffer(self, site: str, width: int) -> Tensor:
        # Written once per window and never given back: fresh gigabytes cost more in page faults
        # than the copy into them. setdefault keeps two workers from making one each.
        if site not in self._buffers:
            rows = self._rows * (self._tokens.shape[1] - 1)
            self._buffers.setdefault(site, torch.empty(rows, width, device=self._subject.device))
        return self._buffers[site]


def start_vectors(
    subject: Subject, tokens: Int[Tensor, "rows pos"], sites: Sequence[str]
) -> dict[str, Float[Tensor, " width"]]:
    """What each site holds at position 0, where every row has the start token and nothing before.

    It is the same vector in every row, so one short row tells it.
    """
    with torch.inference_mode():
        run = subject.run(tokens[:1, :1], capture=sites, logits=False)
    return {site: run.sites[site][0, 0].flatten().float().clone() for site in sites}
