"""`unweave diff`: two artifacts side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from unweave.cli.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

    from unweave.artifact.compare.compare import Comparison, Measured, PartChange
    from unweave.artifact.scores import Interval

SHOWN = 5
"""Ids of features shown a part; the JSON has more."""


def diff(first: Path, second: Path, /, *, json: Path | None = None) -> None:
    """Compare two artifacts: inputs, numbers, and which features are in both, gone or new.

    Parameters
    ----------
    first
        An artifact: what decompile wrote.
    second
        Another one, of the same model or of one tuned from it.
    json
        Write all of it to this file too.
    """
    from rich.console import Console

    from unweave.artifact.atomic import write_text
    from unweave.artifact.compare.compare import compare
    from unweave.progress import watching

    found = compare(first, second, progress=watching())
    if json is not None:
        write_text(json, found.model_dump_json(indent=1) + "\n")
    console = Console(highlight=False)
    if found.identical:
        console.print("Both hold the same results, byte for byte.")
        return
    console.print(_inputs(found))
    if not found.same_subject:
        console.print(
            "Not the same weights: features are matched by direction, which means something only "
            "if one network was tuned from the other.",
            soft_wrap=True,
        )
    console.print(_numbers(found.numbers))
    console.print(_parts(found.parts))
    for part in found.parts:
        for what, ids in (("gone", part.gone), ("new", part.new)):
            if ids:
                console.print(printable(f"{what} {', '.join(ids[:SHOWN])}"), soft_wrap=True)


def _inputs(found: "Comparison") -> "Table":
    table = _table("input", "first", "second")
    for change in found.inputs:
        table.add_row(*(_cell(x) for x in (change.name, change.before, change.after)))
    return table


def _numbers(numbers: "list[Measured]") -> "Table":
    table = _table("number", "first", "second", "")
    for number in numbers:
        said = "apart" if number.apart else ""
        table.add_row(_cell(number.name), _span(number.before), _span(number.after), said)
    return table


def _parts(parts: "list[PartChange]") -> "Table":
    table = _table("part", "alive", "alive then", "in both", "by chance", "described otherwise")
    for part in parts:
        if part.refused:
            table.add_row(_cell(part.part), "", "", _cell(part.refused), "", "")
            continue
        counts = (part.alive_before, part.alive_after, part.kept, part.kept_by_chance)
        table.add_row(_cell(part.part), *map(str, counts), str(part.described_otherwise))
    return table


def _table(*titles: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _span(number: "Interval") -> str:
    if number.low is None or number.high is None:
        return f"{number.value:,.4g}"
    return f"{number.value:,.4g} ({number.low:,.4g} to {number.high:,.4g})"


def _cell(value: object) -> str:
    from rich.markup import escape

    return escape(printable("none" if value is None else str(value)))
