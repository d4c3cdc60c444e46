"""Descriptions and their scores: the scores of all features, the words of those that are shown."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from unweave.artifact.descriptions import Descriptions
from unweave.artifact.feature_id import FeatureId
from unweave.artifact.layout import DESCRIPTIONS
from unweave.errors import UserError
from unweave.report.facts import Described


class Score(NamedTuple):
    """How the last description of one feature detects its firings."""

    part: str
    latent: int
    auroc: float | None
    control: float | None
    """AUROC of the shuffled-label control, where it was kept per feature."""


def read_scores(folder: Path) -> list[Score]:
    """The scores of every feature's last description; empty where the artifact has none.

    Asked of SQLite directly: a large artifact has a quarter of a million descriptions, and parsing
    the claim and the evidence of each takes a minute.
    """
    path = folder / DESCRIPTIONS
    if not path.is_file():
        return []
    where = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    question = (
        "SELECT part, latent, json_extract(scores, '$.auroc'), "
        "json_extract(scores, '$.auroc_shuffled') FROM descriptions ORDER BY id"
    )
    try:
        with closing(sqlite3.connect(where, uri=True)) as store:
            rows = [_score(*row) for row in store.execute(question)]
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged or no store of descriptions ({error})") from error
    return list({(score.part, score.latent): score for score in rows}.values())


def _score(part: object, latent: object, auroc: object, control: object) -> Score:
    numbers = [float(x) if isinstance(x, int | float) else None for x in (auroc, control)]
    return Score(str(part), int(str(latent)), *numbers)


def read_words_of(folder: Path, features: Iterable[str]) -> dict[str, Described]:
    """The last descriptions of the features with these ids, of those that have one."""
    path = folder / DESCRIPTIONS
    if not path.is_file():
        return {}
    found: dict[str, Described] = {}
    with Descriptions(path) as store:
        for feature in sorted(set(features)):
            said = store.latest(FeatureId.parse(feature))
            if said is not None:
                found[feature] = Described(
                    text=said.text,
                    auroc=said.scores.get("auroc"),
                    correlation=said.scores.get("correlation"),
                    bits=said.bits,
                )
    return found
