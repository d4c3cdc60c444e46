"""`unweave subjects`: what can be decompiled here."""

from cyclopts import App

subjects = App(name="subjects", help="What can be decompiled here, and what must be fetched first.")


@subjects.default
def show() -> None:
    """List the subjects that are known by name."""
    from unweave.cli.listing import listing
    from unweave.subject.catalog import list_subjects

    listing(list_subjects(), fetch="unweave subjects fetch")
    print("Also: a Hugging Face folder, a GGUF file, or a hub id such as EleutherAI/pythia-70m")


@subjects.command
def fetch(name: str, /) -> None:
    """Bring a subject onto this machine, hash checked, into the cache.

    Parameters
    ----------
    name
        A name that `unweave subjects` lists.
    """
    from unweave.progress import watching
    from unweave.subject.catalog import fetch_subject

    fetch_subject(name, watching())
