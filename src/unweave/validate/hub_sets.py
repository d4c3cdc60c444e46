"""The published data sets of SAEBench, from the hub; needs the extra `hub` and the network.

Names, columns, classes and pairs are those of sae-bench 0.6.0 (`dataset_info`, `eval_config`).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from unweave.errors import UserError
from unweave.validate.labelled import Example, LabelledSet, split_set

PROFESSIONS = (
    "accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist",
    "dietitian", "dj", "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter",
    "paralegal", "pastor", "personal_trainer", "photographer", "physician", "poet", "professor",
    "psychologist", "rapper", "software_engineer", "surgeon", "teacher", "yoga_teacher",
)  # fmt: skip
CATEGORIES = {
    1: "Toys_and_Games", 2: "Cell_Phones_and_Accessories", 3: "Industrial_and_Scientific",
    5: "Musical_Instruments", 6: "Electronics", 11: "Office_Products", 18: "Pet_Supplies",
    24: "Books", 26: "CDs_and_Vinyl", 30: "Software",
}  # fmt: skip
LANGUAGES = {"en": "en-fr", "fr": "fr-it", "de": "de-en", "es": "es-fr", "nl": "nl-pt"}
CODE = {".c": "C", ".py": "Python", ".html": "HTML", ".java": "Java", ".php": "PHP"}
ENOUGH = 3000
"""Examples of a class taken from a streamed set: 2,000 and 500 are used, and some are over."""
LICENCE = 150
"""Characters left out at the head of a file of code, where its licence stands."""


class Published(NamedTuple):
    """A data set of the published suite."""

    name: str
    load: Callable[[], LabelledSet]
    classes: tuple[str, ...] = ()
    """The labels used, where not all are."""
    pairs: tuple[tuple[str, str], ...] = ()
    """For SCR: which two labels are crossed with the cue."""
    cues: tuple[str, str] | None = None
    """The two values of the cue."""


def _rows(dataset: str, *names: str, split: str, **options: Any) -> Iterator[Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"The data set {dataset} needs the package datasets: pip install 'unweave[hub]', or"
            " give a folder of labelled texts with --data"
        ) from error
    try:
        yield from load_dataset(dataset, *names, split=split, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The hub did not give data set {dataset} ({reason}): give a folder of labelled texts"
            " with --data"
        ) from error


def _both(name: str, dataset: str, made: Callable[[Mapping[str, Any]], Example]) -> LabelledSet:
    sides = [tuple(made(row) for row in _rows(dataset, split=side)) for side in ("train", "test")]
    return LabelledSet(name, *sides)


def bios() -> LabelledSet:
    """Biographies with profession and gender (De-Arteaga et al. 2019)."""

    def made(row: Mapping[str, Any]) -> Example:
        gender = ("male", "female")[row["gender"]]
        return Example(row["hard_text"], PROFESSIONS[row["profession"]], gender)

    return _both("bias_in_bios", "LabHC/bias_in_bios", made)


def amazon() -> LabelledSet:
    """Reviews of one and five stars by category of product (Hou et al. 2024)."""

    def made(row: Mapping[str, Any]) -> Example:
        category = CATEGORIES.get(row["category"], str(row["category"]))
        return Example(row["text"], category, str(float(row["rating"])))

    return _both("amazon", "canrager/amazon_reviews_mcauley_1and5", made)


def amazon_sentiment() -> LabelledSet:
    """The same with the stars as label."""
    found = amazon()
    sides = [tuple(Example(e.text, e.cue) for e in side) for side in (found.train, found.test)]
    return LabelledSet("amazon_sentiment", *sides)


def ag_news() -> LabelledSet:
    """News by topic (Zhang et al. 2015)."""
    return _both("ag_news", "fancyzhx/ag_news", lambda r: Example(r["text"], str(r["label"])))


def europarl() -> LabelledSet:
    """Speeches of the European Parliament by language."""
    examples = []
    for language, pair in LANGUAGES.items():
        rows = _rows("Helsinki-NLP/europarl", pair, split="train", streaming=True)
        texts = (row["translation"][language].strip() for row in rows)
        examples += _first((Example(text, language) for text in texts if text), {language})
    return split_set("europarl", examples, 0)


def github_code() -> LabelledSet:
    """Files of code by programming language, told by their endings, without their heads.

    The set's own loader is a script, and no code of strangers is run: its files are read as they
    are. Their column of text goes by either of two names.
    """
    where = "hf://datasets/codeparrot/github-code/data/*.parquet"
    rows = _rows("parquet", split="train", streaming=True, data_files=where)
    files = (
        (row.get("code") or row.get("content") or "", CODE.get(PurePosixPath(row["path"]).suffix))
        for row in rows
    )
    long = 128 * 3 + LICENCE
    examples = (Example(t[LICENCE:], name) for t, name in files if name and len(t) > long)
    return split_set("github_code", _first(examples, set(CODE.values())), 0)


def _first(examples: Iterator[Example], labels: set[str]) -> list[Example]:
    """The first `ENOUGH` examples of each label."""
    taken: dict[str, list[Example]] = {label: [] for label in labels}
    for example in examples:
        if len(taken[example.label]) < ENOUGH:
            taken[example.label].append(example)
        if all(len(found) == ENOUGH for found in taken.values()):
            break
    return [example for found in taken.values() for example in found]


def _professions(*places: int) -> tuple[str, ...]:
    return tuple(PROFESSIONS[place] for place in places)


_AMAZON_CLASSES = tuple(CATEGORIES[place] for place in (1, 2, 3, 5, 6))
_BIOS_1 = Published(
    "bias_in_bios_class_set1", bios, _professions(0, 1, 2, 6, 9),
    (("professor", "nurse"), ("architect", "journalist"), ("surgeon", "psychologist"),
     ("attorney", "teacher")),
    ("male", "female"),
)  # fmt: skip
_AMAZON = Published(
    "amazon_reviews_1and5", amazon, _AMAZON_CLASSES,
    (("Books", "CDs_and_Vinyl"), ("Software", "Electronics"), ("Pet_Supplies", "Office_Products"),
     ("Industrial_and_Scientific", "Toys_and_Games")),
    ("1.0", "5.0"),
)  # fmt: skip
PROBING: tuple[Published, ...] = (
    _BIOS_1,
    Published("bias_in_bios_class_set2", bios, _professions(11, 13, 14, 18, 19)),
    Published("bias_in_bios_class_set3", bios, _professions(20, 21, 22, 25, 26)),
    _AMAZON,
    Published("amazon_reviews_1and5_sentiment", amazon_sentiment),
    Published("github_code", github_code),
    Published("ag_news", ag_news),
    Published("europarl", europarl),
)
"""Data sets of sparse probing."""
CROSSED: tuple[Published, ...] = (_BIOS_1, _AMAZON)
"""Data sets of SCR and TPP."""
