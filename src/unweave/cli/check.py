"""`unweave check`: is an artifact what its manifest says?"""

from pathlib import Path

from unweave.errors import UserError


def check(folder: Path, /) -> None:
    """Test an artifact: every file there and unchanged, nothing unlisted, all parts agreeing.

    Parameters
    ----------
    folder
        The artifact: what decompile wrote.
    """
    from unweave.artifact.check import check as run
    from unweave.cli.printable import printable
    from unweave.progress import watching

    verdict = run(folder, progress=watching())
    for violation in verdict.violations:
        print(printable(violation))
    if verdict.violations:
        count = len(verdict.violations)
        said = "one violation" if count == 1 else f"{count} violations"
        raise UserError(f"{folder} is not what its manifest says: {said}")
    print(f"{verdict.files} files, all as the manifest says")
