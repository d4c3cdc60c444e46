"""`unweave bench-suite`: the public protocols on one dictionary."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unweave.pipeline.bench_suite import Suite

SHOWN = 3
"""Numbers of a protocol in the table, and controls."""


def bench_suite(
    dictionary: Path,
    /,
    *,
    subject: str,
    out: Path,
    tasks: str | None = None,
    site: str | None = None,
    data: Path | None = None,
    text: str | None = None,
    share: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Run public benchmarks of dictionaries, each beside its controls; resumes if cut off.

    Parameters
    ----------
    dictionary
        A folder with one dictionary, of any format that unweave reads.
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    out
        The folder for the results: new, or one that this command has begun.
    tasks
        Protocols with commas between them (default: all): core, sparse_probing, scr, tpp, ...
    site
        Where the dictionary stands, where its files do not say.
    data
        A folder of labelled texts: NAME.csv, .tsv or .jsonl with columns text, label and perhaps
        cue, folders of train and test, or public data sets as they come. Without it the published
        sets are asked of the hub.
    text
        Plain text for the core metrics: a name that `unweave texts` lists, a file or a folder
        (default: wiki).
    share
        Share of the published numbers of examples and tokens to use (default: 1).
    seed
        The seed of every random choice.
    device
        Where to run: cpu, cuda or cuda:1 (default: cpu).
    dtype
        Number format of the subject (default: float32).
    """
    from unweave.cli.validation import validated
    from unweave.pipeline.bench_suite import BenchSuiteSettings
    from unweave.pipeline.bench_suite import bench_suite as run
    from unweave.progress import watching

    names = tuple(name.strip() for name in tasks.split(",")) if tasks else None
    flags = {
        "tasks": names, "site": site, "data": data, "text": text, "share": share, "seed": seed,
        "device": device, "dtype": dtype,
    }  # fmt: skip
    given = {name: value for name, value in flags.items() if value is not None}
    settings = validated(BenchSuiteSettings, given)
    _show(run(dictionary, subject, settings, out=out, progress=watching()))


def _show(suite: "Suite") -> None:
    """The first numbers of each protocol, and the first of its controls below them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("protocol")
    table.add_column("number", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("")
    for found in suite.found:
        if found.outcome is None:
            table.add_row(escape(found.protocol), escape(f"refused: {found.refused}"))
            continue
        name = found.protocol
        for side, mark in ((found.outcome.numbers, ""), (found.outcome.controls, "control")):
            for number in list(side)[:SHOWN]:
                table.add_row(name, escape(number), f"{side[number].value:.4g}", mark)
                name = ""
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{suite.run.dictionary} at {suite.run.site} of {suite.run.subject}. All of it:"
        f" {suite.folder}", markup=False,
    )  # fmt: skip
