"""Pairs of prompts for interchange interventions: in words, read from files, made for a subject.

A file NAME_pairs.jsonl holds one pair a line:

    {"base": "The capital of Spain is", "source": "The capital of Italy is",
     "base_answer": " Madrid", "source_answer": " Rome", "expected": " Rome",
     "base_at": "Spain", "source_at": "Italy"}

`base_at` and `source_at` say where the variable is: at the last token of the last place where the
prompt has these words; left out, at the prompt's own last token. Read besides are the public
country-capital.json (function vectors: a list of `input` and `output`) and animal diets
(auto-circuit: `clean`, `corrupt`, `answers`, `wrong_answers`). An answer counts by its first token.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.prompts import prompt_rows
from unweave.validate.interventions.interchange import Counterfactual
from unweave.validate.protocols.contrast_data import Prompted
from unweave.validate.protocols.protocol import Refused


class Pair(BaseModel):
    """A base prompt, a source prompt, and what the base should answer with the source's value."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    base: str
    """The prompt that something is put into."""
    source: str
    """The prompt that it comes from."""
    base_answer: str
    """What goes on after the base, its space included."""
    source_answer: str
    """What goes on after the source."""
    expected: str
    """What should go on after the base with the source's value of the variable."""
    base_at: str = ""
    """Words of the base that end where the variable is; the prompt's end when empty."""
    source_at: str = ""
    """The same for the source."""


class Fitting(NamedTuple):
    """Pairs as a subject reads them."""

    pairs: tuple[Counterfactual, ...]
    """Those that can be asked."""
    unfit: int
    """Pairs left out: the place cannot be told in tokens, or the expected answer begins as the
    base's own does."""


def fitting(subject: Subject, pairs: Sequence[Pair]) -> Fitting:
    """The pairs in a subject's tokens.

    Raises:
        Refused: the subject has no tokenizer.
    """
    if subject.tokenizer is None:
        raise Refused(f"{subject.name} has no tokenizer, so prompts in words cannot be put to it")
    sides = [
        _placed(subject, [(getattr(one, side), getattr(one, f"{side}_at")) for one in pairs])
        for side in ("base", "source")
    ]
    answers = [
        subject.tokenizer.encode_many([getattr(one, name) for one in pairs])
        for name in ("base_answer", "source_answer", "expected")
    ]
    found = []
    for base, source, *given in zip(*sides, *answers, strict=True):
        if base is None or source is None or not all(given):
            continue
        own, theirs, expected = (ids[0] for ids in given)
        if expected != own:
            found.append(
                Counterfactual(base[0], source[0], base[1], source[1], own, theirs, expected)
            )
    return Fitting(tuple(found), len(pairs) - len(found))


def _placed(
    subject: Subject, prompts: Sequence[tuple[str, str]]
) -> list[tuple[tuple[int, ...], int] | None]:
    """Token ids and the position of the last token of the words asked for, where that is plain."""
    assert subject.tokenizer is not None
    rows = prompt_rows(subject, [text for text, _ in prompts])
    ends = [text.rfind(at) + len(at) if at in text else -1 for text, at in prompts]
    # What comes after the words must be the same tokens on its own as in the prompt.
    tails = subject.tokenizer.encode_many(
        [text[end:] if end >= 0 else "" for (text, _), end in zip(prompts, ends, strict=True)]
    )
    found: list[tuple[tuple[int, ...], int] | None] = []
    for (text, at), row, tail, end in zip(prompts, rows, tails, ends, strict=True):
        tail = tail if at and end < len(text) else []
        plain = end >= 0 and row[len(row) - len(tail) :] == tail
        found.append((tuple(row), len(row) - len(tail) - 1) if plain else None)
    return found


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file NAME_pairs.jsonl.

    Raises:
        UserError: a line that is no pair.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(Pair.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                raise UserError(
                    f"Line {number} of {path} is no pair of prompts: {first['msg']}"
                    f" {first['loc'] or ''}"
                ) from error
    return found


def read_mapping(path: Path) -> dict[str, str]:
    """A public file of function vectors: a list of objects with `input` and `output`.

    Raises:
        UserError: it is not of that form.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return {str(one["input"]): str(one["output"]) for one in records}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} should be a list of objects with input and output ({error!r})"
        ) from error


def from_contrasts(prompts: Iterable[Prompted]) -> list[Pair]:
    """Pairs whose prompts differ in one word, which is the variable: each side the other's source.

    Prompts that differ in more words or in their number, and answers that are the same, are left
    out.
    """
    found = {}
    for one in prompts:
        clean, corrupt = one.clean.split(), one.corrupt.split()
        places = [at for at, (a, b) in enumerate(zip(clean, corrupt, strict=False)) if a != b]
        if len(clean) != len(corrupt) or len(places) != 1 or one.right[0] == one.wrong[0]:
            continue
        sides = (
            (one.clean, one.right[0], clean[places[0]]),
            (one.corrupt, one.wrong[0], corrupt[places[0]]),
        )
        for (base, own, at), (source, theirs, there) in (sides, sides[::-1]):
            pair = Pair(
                base=base, source=source, base_answer=own, source_answer=theirs, expected=theirs,
                base_at=at, source_at=there,
            )  # fmt: skip
            found[pair.base, pair.source] = pair
    return list(found.values())
