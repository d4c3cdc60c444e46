"""A table of what is known by name."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Listed(Protocol):
    """What an entry of the catalogue says of itself."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def about(self) -> str: ...  # noqa: D102

    @property
    def licence(self) -> str: ...  # noqa: D102

    @property
    def megabytes(self) -> float: ...  # noqa: D102

    @property
    def fetched(self) -> bool: ...  # noqa: D102


def listing(entries: Sequence[Listed], *, fetch: str) -> None:
    """Print entries, one a row, with the command that brings what is not here yet."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "what it is", "licence"):
        table.add_column(title, overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("here")
    for entry in entries:
        size = f"{entry.megabytes:,.0f} MB" if entry.megabytes else ""
        here = "yes" if entry.fetched else f"{fetch} {entry.name}"
        table.add_row(
            *(escape(cell) for cell in (entry.name, entry.about, entry.licence)), size, here
        )
    Console(soft_wrap=False, highlight=False).print(table)
