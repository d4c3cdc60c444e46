"""What a public protocol is given and what it gives back: numbers with controls, or a reason."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from unweave.artifact.atomic import Json
from unweave.artifact.records import Record
from unweave.artifact.scores import Number
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.placed import Placed


class Refused(Exception):
    """A protocol whose numbers would mean nothing here; the message says why, in one sentence."""


@dataclass(frozen=True)
class Bench:
    """What a protocol is run on."""

    subject: Subject
    """The network."""
    dictionary: Placed
    """What is judged: a dictionary, or any coder, at its place."""
    store: Path
    """A folder of the run's own, for what need not be computed twice."""
    data: Path | None = None
    """A folder of data sets, one folder each; without it the protocol's own public ones."""
    text: str = "wiki"
    """Plain text for protocols that need no labels, by the name that `open_text` takes."""
    share: float = 1.0
    """Share of the published numbers of examples and tokens, for a machine that has not the time.
    Settings that no share can be taken of (k, context, batches of a probe) stay as published."""
    seed: int = 0
    """Seed of every random choice."""
    progress: Progress = QUIET
    """Where it reports."""


class Outcome(Record):
    """What a protocol found."""

    protocol: str
    """Its name, as `unweave bench-suite --tasks` takes it."""
    numbers: dict[str, Number]
    """The headline numbers, the first one first."""
    controls: dict[str, Number]
    """The same measure where it must come out bad (random dictionary, shuffled labels ...)."""
    details: Json = Field(default_factory=dict)
    """Everything else worth keeping: settings, numbers by data set, by k."""

    @model_validator(mode="after")
    def _controlled(self) -> "Outcome":
        if self.numbers and not self.controls:
            raise ValueError(f"{self.protocol} has no control, without which no number can be read")
        return self


class Protocol(NamedTuple):
    """One public protocol."""

    name: str
    """As `unweave bench-suite --tasks` takes it."""
    title: str
    """What it asks, in half a sentence, with its source."""
    run: Callable[[Bench], Outcome]
    """Runs it with its published settings; raises `Refused` where it would mean nothing."""
