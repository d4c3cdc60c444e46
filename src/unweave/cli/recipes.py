"""`unweave recipes`: the ways to train that are known by name."""


def recipes() -> None:
    """List the recipes that `unweave train` knows, each with its source."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unweave.training.recipes.catalog import list_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is, and its source", overflow="fold")
    for name, about in list_recipes():
        table.add_row(escape(name), escape(about))
    Console(soft_wrap=False, highlight=False).print(table)
