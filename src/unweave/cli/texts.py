"""`unweave texts`: what a subject can be run on."""

from cyclopts import App

texts = App(name="texts", help="The texts a subject can be run on, and what must be fetched first.")


@texts.default
def show() -> None:
    """List the texts that are known by name."""
    from unweave.cli.listing import listing
    from unweave.subject.catalog import list_texts

    listing(list_texts(), fetch="unweave texts fetch")
    print("Also: a file, a folder of files, or hub:NAME of a data set")


@texts.command
def fetch(name: str, /) -> None:
    """Bring a text onto this machine, hash checked, into the cache.

    Parameters
    ----------
    name
        A name that `unweave texts` lists.
    """
    from unweave.progress import watching
    from unweave.subject.catalog import fetch_text

    fetch_text(name, watching())
