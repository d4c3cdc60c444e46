"""`unweave compliance`: an artifact held to what somebody requires."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unweave.errors import UserError


def compliance(
    folder: Path,
    /,
    *,
    policy: Annotated[Path | None, Parameter(name="--policy")] = None,
    json: Path | None = None,
) -> None:
    """Hold an artifact to a policy, requirement by requirement; exit code 2 unless all are met.

    Parameters
    ----------
    folder
        The artifact: what decompile wrote.
    policy
        A TOML file of thresholds (default: those that docs/artifact.md proposes).
    json
        Write the verdicts to this file too.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unweave.artifact.atomic import write_text
    from unweave.cli.config import configured
    from unweave.cli.printable import printable
    from unweave.progress import watching
    from unweave.report.compliance.judge import judge
    from unweave.report.compliance.policy import Policy

    found = judge(folder, configured(Policy, {}, policy), progress=watching())
    if json is not None:
        write_text(json, found.model_dump_json(indent=1) + "\n")
    table = Table(box=None, pad_edge=False)
    for title in ("required", "", "found"):
        table.add_column(title, overflow="fold")
    for requirement in found.requirements:
        cells = (requirement.name, requirement.outcome, requirement.found)
        table.add_row(*(escape(printable(cell)) for cell in cells))
    Console(highlight=False).print(table)
    if not found.complies:
        failed = sum(requirement.outcome != "met" for requirement in found.requirements)
        raise UserError(f"{folder} misses {failed} of {len(found.requirements)} requirements")
