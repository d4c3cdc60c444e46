"""`unweave report`: the one-file report of an artifact."""

from pathlib import Path


def report(folder: Path, /) -> None:
    """Write an artifact's report.html anew: one file that opens from disk, without a network.

    Parameters
    ----------
    folder
        The artifact: what decompile wrote.
    """
    from unweave.report import write_report

    print(f"The report: {write_report(folder)}")
