"""measurements.json: several ways to take one place of a network apart, in one unit.

All are measured on the same held-out text in the same splice mode, so that they may stand in one
table and on one plot. Losses and lengths are in bits per token; what is nats is called nats.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from unweave.artifact.atomic import write_text
from unweave.artifact.reading import record_in
from unweave.artifact.records import Record, SubjectRecord, TextRecord
from unweave.artifact.scores import Mode, Number
from unweave.errors import UserError

Kind = Literal["decompiled", "dictionary", "transcoder", "baseline", "control"]


class Measurement(Record):
    """The four numbers of one method; the losses are comparable between methods, shares are not."""

    name: str
    """The method, as tables show it: `topk-k16`, `pca-k16` ..."""
    kind: Kind
    """What it is; a control must come out bad."""
    note: str = ""
    """What it is, in a sentence."""
    math_loss: Number
    """Mathematical accuracy: KL from the original's predictions with the parts in place."""
    math_length: Number
    """To send which latents fire and how strongly, dictionary (and edges) amortised."""
    semantic_loss: Number
    """Semantic accuracy: the same KL with what the descriptions predict in the latents' place."""
    semantic_share: Number
    """Share of the bits of firing that the descriptions explain."""
    semantic_length: Number
    """The descriptions, amortised over the same tokens."""
    more: dict[str, Number] = Field(default_factory=dict)
    """Further numbers: `ce_increase` and `semantic_ce_increase` (nats/token), `l0`, `fvu` ..."""
    controls: dict[str, Number]
    """What must come out bad of this very method: `semantic_share_shuffled` ..."""

    @model_validator(mode="after")
    def _controlled(self) -> "Measurement":
        if not self.controls:
            raise ValueError(f"{self.name} has no control, without which no number can be read")
        return self


class Measurements(Record):
    """Methods side by side."""

    subject: SubjectRecord
    text: TextRecord
    place: str
    """Where: a site, `A -> B`, or `everything`."""
    mode: Mode
    """Splice mode of both losses."""
    amortised_over: int
    """Tokens over which dictionaries and descriptions are amortised."""
    code: str
    """Version of unweave."""
    seed: int
    methods: list[Measurement]

    @model_validator(mode="after")
    def _has_controls(self) -> "Measurements":
        if not any(method.kind == "control" for method in self.methods):
            raise ValueError("no method is a control, without which no number can be read")
        return self


def write_measurements(path: Path, found: Measurements) -> None:
    """Write them, whole or not at all."""
    write_text(path, found.model_dump_json(indent=1) + "\n")


def read_measurements(path: Path) -> Measurements:
    """Read them; UserError when the file is missing or does not fit."""
    if not path.is_file():
        raise UserError(f"No file {path}: measure it first with unweave validate")
    return record_in(path, Measurements)
