"""What has been said of features: text, claim, evidence and scores in one SQLite file.

Columns: `feature` (the id), `part`, `latent`, `round` (0 first, later ones revise it), `text`,
`claim`, `evidence` and `scores` (JSON), `bits` (length). `words` is the FTS5 index over `text`.

Equal rows give equal bytes under one version of SQLite: rows go in by part, latent and round, in
one transaction, into a database in memory with a fixed page size, which is then copied compactly.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from unweave.artifact.atomic import Json, new_file
from unweave.artifact.feature_id import FeatureId
from unweave.errors import UserError

_SCHEMA = """
CREATE TABLE descriptions (
    id INTEGER PRIMARY KEY,
    feature TEXT NOT NULL,
    part TEXT NOT NULL,
    latent INTEGER NOT NULL,
    round INTEGER NOT NULL,
    text TEXT NOT NULL,
    claim TEXT NOT NULL,
    evidence TEXT NOT NULL,
    scores TEXT NOT NULL,
    bits REAL NOT NULL,
    UNIQUE (feature, round)
);
CREATE INDEX by_part ON descriptions (part, latent, round);
CREATE VIRTUAL TABLE words USING fts5(text, content='descriptions', content_rowid='id');
"""
_COLUMNS = "feature, part, latent, round, text, claim, evidence, scores, bits"


@dataclass(frozen=True)
class Description:
    """One thing said of one feature."""

    feature: FeatureId
    """Of which feature."""
    text: str
    """In words."""
    claim: Mapping[str, Json]
    """The same as something a machine can check."""
    scores: Mapping[str, float]
    """How it did on held-out text, by measure; finite."""
    bits: float
    """Its length."""
    round: int = 0
    """Which revision this is."""
    evidence: Mapping[str, Json] = field(default_factory=dict)
    """What it was concluded from."""


def write_descriptions(path: Path, descriptions: Iterable[Description]) -> int:
    """Write the store, whole or not at all; return how many went in.

    A feature may be described once per round: a second time raises ValueError.
    """
    order = sorted(descriptions, key=_order)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as base:
        base.execute("PRAGMA page_size = 4096")
        base.execute("PRAGMA auto_vacuum = NONE")
        base.execute("PRAGMA encoding = 'UTF-8'")
        base.executescript(_SCHEMA)
        base.execute("BEGIN")
        try:
            base.executemany(
                f"INSERT INTO descriptions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (_row(description) for description in order),
            )
        except sqlite3.IntegrityError as error:
            raise ValueError(f"a feature is described twice in one round ({error})") from error
        base.execute("INSERT INTO words (words) VALUES ('rebuild')")
        base.execute("INSERT INTO words (words) VALUES ('optimize')")
        base.execute("COMMIT")
        with new_file(path) as partial:
            base.execute("VACUUM INTO ?", (str(partial),))
    return len(order)


class Descriptions:
    """A store opened for reading; close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open `path`; UserError when it is missing or no such store."""
        if not path.is_file():
            raise UserError(f"No file {path}: the artifact holds no descriptions")
        self._path = path
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        self._base = sqlite3.connect(uri, uri=True)
        try:
            self._base.execute(f"SELECT {_COLUMNS} FROM descriptions LIMIT 1").fetchone()
            self._base.execute("SELECT rowid FROM words LIMIT 1").fetchone()
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise UserError(f"{path} is damaged or no store of descriptions ({error})") from error

    def __enter__(self) -> "Descriptions":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._base.close()

    def __len__(self) -> int:
        return int(self._base.execute("SELECT count(*) FROM descriptions").fetchone()[0])

    def __iter__(self) -> Iterator[Description]:
        """Every description, by part, latent and round."""
        return self._select("ORDER BY id")

    def of_part(self, part: str) -> Iterator[Description]:
        """What is said of one part's features, by latent and round."""
        return self._select("WHERE part = ? ORDER BY latent, round", part)

    def latest(self, feature: FeatureId) -> Description | None:
        """The last word on a feature; None when nothing was said."""
        return next(
            self._select("WHERE feature = ? ORDER BY round DESC LIMIT 1", str(feature)), None
        )

    def search(self, words: str, limit: int = 20) -> list[Description]:
        """The descriptions that hold all of `words`, best first; any text, no query language."""
        terms = " ".join('"' + term.replace('"', '""') + '"' for term in words.split())
        if not terms:
            return []
        where = "JOIN words ON words.rowid = id WHERE words MATCH ? ORDER BY rank, id LIMIT ?"
        return list(self._select(where, terms, limit))

    def faults(self) -> list[str]:
        """What SQLite finds wrong with the file, a sentence each; empty when nothing is."""
        try:
            found = self._base.execute("PRAGMA integrity_check").fetchall()
        except sqlite3.DatabaseError as error:
            return [f"SQLite cannot read it ({error})"]
        return [f"SQLite says: {line}" for (line,) in found if line != "ok"]

    def _select(self, rest: str, *values: str | int) -> Iterator[Description]:
        columns = ", ".join(f"descriptions.{name}" for name in _COLUMNS.split(", "))
        try:
            for row in self._base.execute(f"SELECT {columns} FROM descriptions {rest}", values):
                yield _description(*row)
        except (sqlite3.DatabaseError, ValueError) as error:
            raise UserError(f"{self._path} is damaged ({error})") from error


def _description(
    feature: str,
    part: str,
    latent: int,
    turn: int,
    text: str,
    claim: str,
    evidence: str,
    scores: str,
    bits: float,
) -> Description:
    return Description(
        feature=FeatureId.parse(feature),
        text=text,
        claim=json.loads(claim),
        scores=json.loads(scores),
        bits=bits,
        round=turn,
        evidence=json.loads(evidence),
    )


def _row(description: Description) -> tuple[str | int | float, ...]:
    feature = description.feature
    return (
        str(feature),
        feature.part,
        feature.latent,
        description.round,
        description.text,
        _json(description.claim),
        _json(description.evidence),
        _json(description.scores),
        description.bits,
    )


def _json(value: Mapping[str, Json]) -> str:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _order(description: Description) -> tuple[list[tuple[int, str]], int, int]:
    """By part (L2 before L10), latent and round."""
    pieces = re.findall(r"\d+|\D+", description.feature.part)
    part = [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
    return part, description.feature.latent, description.round
