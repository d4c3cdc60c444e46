"""`unweave report`: the one-file report of an artifact."""

from pathlib import Path


def report(folder: Path, /) -> None:
    """Write an artifact's report.html anew: one file that opens from disk, without a network.

    Parameters
    ----------
    folder
        The artifact: what decompile wrote.
    """
    from unweave.artifact.layout import REPORT
    from unweave.artifact.manifest import read_manifest, rerecord
    from unweave.report import write_report

    read_manifest(folder)
    path = write_report(folder)
    rerecord(folder, REPORT)
    print(f"The report: {path}")
