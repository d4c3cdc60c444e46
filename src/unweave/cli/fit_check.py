"""`unweave fit-check`: does a dictionary belong at this place of this model?"""

from pathlib import Path
from typing import TYPE_CHECKING

from unweave.cli.counts import Count
from unweave.errors import UserError

if TYPE_CHECKING:
    from unweave.dictionaries.dictionary import Dictionary
    from unweave.validate.fit_check import FitReport

CONTEXT = 64
"""Tokens of one row."""
SHOWN = 6
"""Places listed under a verdict."""


def fit_check(
    dictionary: Path,
    subject: str,
    /,
    *,
    site: str | None = None,
    writes: str | None = None,
    part: str | None = None,
    text: str | None = None,
    tokens: Count = 4096,
) -> None:
    """Say whether a dictionary fits a model at a place, and where it would fit better.

    Its error is measured there and at the places around, on raw and on normalised vectors.

    Parameters
    ----------
    dictionary
        A folder of ours or of another library, with one dictionary or several.
    subject
        A name that `unweave subjects` lists, a Hugging Face folder, a GGUF file or a hub id.
    site
        Where it should read, such as blocks.7.resid_post; left out, what the folder says.
    writes
        Where it should write, if elsewhere.
    part
        Which one of several dictionaries, by its name; left out, all of them.
    text
        A name that `unweave texts` lists, a file, a folder or hub:NAME of a data set.
    tokens
        Tokens to measure on.
    """
    from unweave.cli.printable import printable
    from unweave.progress import watching
    from unweave.subject import load_subject, token_rows
    from unweave.validate.fit_check import fit_check as run

    parts = _parts(dictionary, part, site)
    network = load_subject(subject)
    text = text or ("heldout" if network.name == "wren" else "self")
    context = min(CONTEXT, network.context)
    rows = token_rows(network, text, tokens=tokens, context=context, progress=watching())
    for one in parts:
        report = run(one, network, rows.train, site=site, writes=writes)
        for line in (report.verdict, *_lines(report)):
            print(printable(line))


def _parts(folder: Path, part: str | None, site: str | None) -> "list[Dictionary]":
    from unweave.dictionaries.formats import load_foreign

    found = load_foreign(folder)
    if part is not None and part not in found:
        raise UserError(f"{folder} has no part {part}: its parts are {', '.join(found)}")
    if site is not None and part is None and len(found) > 1:
        raise UserError(f"{folder} has several parts: say which with --part {next(iter(found))}")
    return [one for name, one in found.items() if part in (None, name)]


def _lines(report: "FitReport") -> list[str]:
    """The best places and the one named, one a line."""
    shown = list(report.fits[:SHOWN])
    shown += [report.named] if report.named not in shown else []
    width = max(len(str(fit.place)) for fit in shown)
    return [
        f"  {fit.place!s:{width}}  {fit.normalisation:10}  FVU {fit.fvu:7.3f}  L0 {fit.l0:6.1f}"
        + ("  <- asked about" if fit == report.named else "")
        for fit in shown
    ]
