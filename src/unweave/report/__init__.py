"""One self-contained page about an artifact."""

from pathlib import Path

from unweave.artifact.atomic import write_text
from unweave.artifact.layout import REPORT
from unweave.artifact.manifest import rerecord
from unweave.report.page import page
from unweave.report.read.story import read_story

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html` into an artifact's folder and return its path.

    One file without network, fonts or scripts of others; the manifest takes note of it. Where the
    artifact lacks its gallery, graph or samples, the page says so. UserError when the folder, its
    manifest or its scores are missing, or something that is there is damaged.
    """
    path = folder / REPORT
    write_text(path, page(read_story(folder)))
    rerecord(folder, REPORT)
    return path
