"""Descriptions with their scores, by feature id."""

from pathlib import Path

from unweave.artifact.descriptions import Description, Descriptions
from unweave.artifact.layout import DESCRIPTIONS
from unweave.report.facts import Described


def read_descriptions(folder: Path) -> dict[str, Described]:
    """The last description of every feature; empty where the artifact has none."""
    path = folder / DESCRIPTIONS
    if not path.is_file():
        return {}
    with Descriptions(path) as store:
        return {str(one.feature): _described(one) for one in store}  # a later round replaces


def _described(one: Description) -> Described:
    return Described(
        text=one.text,
        auroc=one.scores.get("auroc"),
        control=one.scores.get("auroc_shuffled"),
        correlation=one.scores.get("correlation"),
        bits=one.bits,
    )
