"""Texts with labels: tables of one's own, and how examples are drawn from them.

A data set is a file NAME.jsonl, NAME.csv or NAME.tsv, or a folder NAME with `train` and `test` in
one of these forms. Its columns are `text`, `label` and, where a second attribute crosses the label
(profession x gender), `cue`. A single file is split by us: every fifth row, shuffled, is for tests.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unweave.artifact.hashing import sha256_of_json
from unweave.errors import UserError

FORMS = (".jsonl", ".csv", ".tsv")
"""Tables that are understood."""


class Example(NamedTuple):
    """One text."""

    text: str
    label: str
    """What a probe is to tell."""
    cue: str = ""
    """A second attribute that crosses the label; empty where there is none."""


class LabelledSet(NamedTuple):
    """Examples to learn from and others to test on, in the order of their file."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    @property
    def labels(self) -> list[str]:
        """Labels with examples on both sides, the most frequent one first."""
        there = {example.label for example in self.test}
        counts = Counter(example.label for example in self.train)
        return [label for label, _ in sorted(counts.items(), key=_rank) if label in there]

    @property
    def crossed(self) -> bool:
        """Whether it has a second attribute of at least two values."""
        return len({example.cue for example in self.train}) > 1

    @property
    def sha256(self) -> str:
        """Hex digest over all texts and labels."""
        return sha256_of_json([[list(example) for example in side] for side in self[1:]])


def _rank(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]


def load_sets(folder: Path, seed: int = 0) -> list[LabelledSet]:
    """Every data set in a folder, in the order of their names; known public files among them.

    Raises:
        UserError: no such folder, nothing in it, or a table that cannot be read.
    """
    from unweave.validate.public_files import public_sets

    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of labelled texts")
    itself = own_set(folder, seed)
    paths = [] if itself else sorted(folder.iterdir())
    found = [made for made in (itself, *(own_set(path, seed) for path in paths)) if made]
    found += [one for one in public_sets(folder, seed) if one.name not in {s.name for s in found}]
    if not found:
        raise UserError(
            f"{folder} has no labelled texts: put NAME.csv, NAME.tsv or NAME.jsonl with the columns"
            " text and label there, or a folder NAME with train and test in such a form"
        )
    return sorted(found, key=lambda one: one.name)


def own_set(path: Path, seed: int) -> LabelledSet | None:
    """A data set in the form of the module's first lines, or None where `path` is nothing of it."""
    if path.is_dir():
        sides = [next(iter(sorted(_tables(path, side))), None) for side in ("train", "test")]
        if not all(side and _has_columns(side) for side in sides):
            return None
        return LabelledSet(path.name, *(tuple(read_table(side)) for side in sides if side))
    if path.suffix not in FORMS or not _has_columns(path):
        return None
    return split_set(path.stem, list(read_table(path)), seed)


def _tables(folder: Path, stem: str) -> Iterator[Path]:
    return (path for form in FORMS if (path := folder / f"{stem}{form}").is_file())


def split_set(name: str, examples: Sequence[Example], seed: int) -> LabelledSet:
    """A fifth of the examples to test on, drawn by the seed; the order of the file is kept."""
    test = set(np.random.default_rng(seed).permutation(len(examples))[: len(examples) // 5])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for place, example in enumerate(examples):
        sides[place in test].append(example)
    return LabelledSet(name, tuple(sides[0]), tuple(sides[1]))


def _has_columns(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline().lower()
    return "text" in first and "label" in first


def read_table(path: Path) -> Iterator[Example]:
    """The rows of a table with columns text, label and perhaps cue; empty texts are left out.

    Raises:
        UserError: a row without text or label, or a file that is not of its form.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(_rows(path, lines), 1):
                if row.get("text") is None or row.get("label") is None:
                    raise UserError(f"Row {number} of {path} has no text or no label")
                text = str(row["text"]).strip()
                if text:
                    yield Example(text, str(row["label"]), str(row.get("cue") or ""))
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def _rows(path: Path, lines: Iterable[str]) -> Iterator[dict]:
    if path.suffix != ".jsonl":
        yield from csv.DictReader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise UserError(f"Line {number} of {path} is not an object")
            yield row


Drawn = dict[str, list[str]]
"""Texts by class."""


def draw_classes(
    examples: Sequence[Example], classes: Sequence[str], count: int, seed: int
) -> Drawn:
    """`count` texts of each class at random; of a crossed set as many of each cue.

    Where there are fewer, every class gets as many as the smallest can give; where a class has no
    text of some cue, cues are not balanced.
    """
    cues = sorted({e.cue for e in examples if e.label in classes})
    per = _least(Counter((e.label, e.cue) for e in examples), classes, cues, count // len(cues))
    if not per:
        examples, cues = [e._replace(cue="") for e in examples], [""]
        per = _least(Counter((e.label, e.cue) for e in examples), classes, cues, count)
    random = np.random.default_rng(seed)
    drawn: Drawn = {}
    for name in classes:
        of_class = [[e.text for e in examples if e.label == name and e.cue == c] for c in cues]
        drawn[name] = [t[at] for t in of_class for at in random.permutation(len(t))[:per]]
    return drawn


def _least(
    counts: Counter[tuple[str, str]], classes: Sequence[str], cues: Sequence[str], wanted: int
) -> int:
    return max(0, min(wanted, *(counts[name, cue] for name in classes for cue in cues)))
