"""`unweave validate`: how true and how long an artifact or a dictionary is, beside controls."""

from pathlib import Path
from typing import TYPE_CHECKING

from unweave.cli.counts import Count

if TYPE_CHECKING:
    from unweave.pipeline.validation_table import Table


def validate(
    artifact: Path,
    /,
    *,
    out: Path | None = None,
    subject: str | None = None,
    site: str | None = None,
    text: str | None = None,
    tokens: Count | None = None,
    seed: int | None = None,
    shuffles: int = 1,
    threads: int = 1,
) -> None:
    """Measure the four numbers on held-out text, beside baselines and controls that must fail.

    An artifact is measured by its own descriptions; dictionaries are described on the way.
    Interrupted, the same command goes on.

    Parameters
    ----------
    artifact
        An artifact, a folder of unweave train, or a dictionary of ours or of another library.
    out
        The folder for the results (default: the artifact's name with .validation after it).
    subject
        The network, where the folder does not say which.
    site
        Measure only dictionaries that write here, where a run has several places.
    text
        A name that unweave texts lists, a file or a folder (default: what the artifact was made
        from; its held-out part is measured).
    tokens
        Tokens of the text, held-out ones included (default: as the artifact).
    seed
        The seed of the text's order (default: as the artifact).
    shuffles
        Networks with shuffled weights in the control.
    threads
        Processor threads to use; for small networks one is faster than two.
    """
    import torch

    from unweave.cli.validation import validated
    from unweave.pipeline.validate import ValidateSettings
    from unweave.pipeline.validate import validate as run
    from unweave.pipeline.validation_table import (
        RANDOMISED,
        said_of,
        said_of_randomised,
        tabulated,
    )
    from unweave.progress import watching

    torch.set_num_threads(threads)
    flags = {"subject": subject, "site": site, "text": text, "tokens": tokens, "seed": seed}
    given: dict[str, object] = {name: value for name, value in flags.items() if value is not None}
    given["randomised"] = {"shuffles": shuffles}
    settings = validated(ValidateSettings, given)
    folder = out or artifact.absolute().with_name(artifact.absolute().name + ".validation")
    done = run(artifact, settings, out=folder, progress=watching())
    _show(tabulated(done.found), f"{done.found.place}. {said_of(done.found)}")
    _show(tabulated(done.randomised, RANDOMISED), said_of_randomised(done.randomised))
    print(f"All of it: {folder}")


def _show(table: "Table", said: str) -> None:
    """Methods side by side, a number a line with its interval below: it fits a narrow terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as Shown

    from unweave.cli.printable import printable

    shown = Shown(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("", overflow="fold")
    for name, kind, *_ in table.lines:
        shown.add_column(
            f"{escape(printable(name))}\n{escape(kind)}", justify="right", no_wrap=True
        )
    for place, title in enumerate(table.titles[2:], start=2):
        cells = [line[place].replace(" (", "\n(").replace(" to ", "..") for line in table.lines]
        shown.add_row(title, *(escape(cell) for cell in cells))
    console = Console(highlight=False)
    console.print(shown)
    console.print(printable(said), markup=False)
