"""Measurements as a table for a person; nothing is shown without its controls."""

from collections.abc import Sequence
from typing import NamedTuple

from unweave.artifact.measurements import Measurement, Measurements
from unweave.artifact.scores import Number
from unweave.errors import UserError

ORDER = ("decompiled", "dictionary", "transcoder", "baseline", "control")


class Column(NamedTuple):
    """One number of every method."""

    title: str
    """What it is called."""
    field: str
    """A measurement's field, or a name among its `more` or `controls`."""
    digits: int = 3
    """Digits after the point."""
    spread: bool = False
    """Whether its interval is shown."""


FOUR = (
    Column("KL, bits", "math_loss", 3, True),
    Column("CE, nats", "ce_increase", 3, True),
    Column("length, bits", "math_length", 1, True),
    Column("L0", "l0", 1),
    Column("B", "value_bits", 0),
    Column("words: KL, bits", "semantic_loss", 3, True),
    Column("CE, nats", "semantic_ce_increase", 3, True),
    Column("firing said", "semantic_share", 3, True),
    Column("(shuffled)", "semantic_share_shuffled", 3),
    Column("words, bits", "semantic_length", 3),
)
"""The four numbers, with what they are read beside."""
RANDOMISED = (
    Column("AUROC", "auroc", 3, True),
    Column("firing said", "semantic_share", 3, True),
    Column("nats the parts keep", "math_nats_kept", 3),
    Column("nats the words keep", "semantic_nats_kept", 3),
    Column("next token, z", "next_token", 3, True),
)
"""What a network that knows nothing is held against."""


class Table(NamedTuple):
    """Titles and lines."""

    titles: list[str]
    lines: list[list[str]]


def tabulated(found: Measurements, columns: Sequence[Column] = FOUR) -> Table:
    """Methods as lines, controls last; mean ablation is the last of them.

    Raises:
        UserError: no control among the methods, or a method without one.
    """
    if not any(method.kind == "control" for method in found.methods) or not all(
        method.controls for method in found.methods
    ):
        raise UserError(
            f"What was measured at {found.place} has no controls, without which no number can be "
            "read: measure it again with unweave validate"
        )
    ordered = sorted(found.methods, key=lambda method: ORDER.index(method.kind))
    lines = [[m.name, m.kind, *(_cell(m, column) for column in columns)] for m in ordered]
    if columns is FOUR:
        lines.append(_floor(ordered[0], len(columns)))
    return Table(["", "", *(column.title for column in columns)], lines)


def as_markdown(found: Measurements, randomised: Measurements) -> str:
    """Both tables with what they were measured on."""
    parts = [f"# {_plain(found.subject.name)}, {_plain(found.place)}", _plain(said_of(found))]
    parts += [_markdown(tabulated(found))]
    parts += ["## Randomised weights", _plain(said_of_randomised(randomised))]
    parts += [_markdown(tabulated(randomised, RANDOMISED))]
    return "\n\n".join(parts) + "\n"


def said_of(found: Measurements) -> str:
    """What the numbers were measured on."""
    return (
        f"Splice mode {found.mode}, on {found.text.heldout_tokens:,} held-out tokens of "
        f"{found.text.name}; dictionaries and words amortised over "
        f"{found.amortised_over:,} tokens; 95% intervals over rows. KL and lengths in bits a "
        "token, CE increases in nats a token."
    )


def said_of_randomised(found: Measurements) -> str:
    """What the second table is."""
    return (
        f"The same short recipe at {found.place} of the trained network (two seeds) and of copies "
        "with shuffled weights. Kept: what mean ablation costs less what the parts, or their "
        "words, cost. A score that does not tell the lines apart says nothing about training. Only "
        "this recipe is repeated with another seed: what the first table has is measured as it is."
    )


def value_of(method: Measurement, name: str) -> Number | None:
    """A number of a method, whichever part of the record it stands in."""
    kept = {"math_nats_kept": "ce_increase", "semantic_nats_kept": "semantic_ce_increase"}
    if name in kept:
        floor = method.controls["ce_increase_mean_ablation"].value
        return Number(value=floor - method.more[kept[name]].value, unit="nats/token")
    found = getattr(method, name, None)
    return found if found is not None else method.more.get(name) or method.controls.get(name)


def _cell(method: Measurement, column: Column) -> str:
    number = value_of(method, column.field)
    if number is None:
        return "-"
    said = f"{number.value:.{column.digits}f}"
    if column.spread and number.low is not None and number.high is not None:
        digits = max(column.digits - 1, 0)
        said += f" ({number.low:.{digits}f} to {number.high:.{digits}f})"
    return said


def _floor(method: Measurement, columns: int) -> list[str]:
    loss, ce = (
        method.controls[name].value for name in ("loss_mean_ablation", "ce_increase_mean_ablation")
    )
    cells = [f"{loss:.3f}", f"{ce:.3f}", "0.0"]
    return ["mean ablation", "control", *cells, *["-"] * (columns - len(cells))]


def _markdown(table: Table) -> str:
    lines = [table.titles, ["---"] * len(table.titles), *table.lines]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(text: str) -> str:
    """Names come from folders: nothing in them may be markup, or end a cell."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    for mark in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        kept = kept.replace(mark, "\\" + mark)
    return kept
