"""Multiple-choice questions: from files, from the hub, from pairs; and what a subject answers.

A file of questions is JSON lines of `question`, `choices` (a list) and `answer` (its index).
"""

import json
from collections.abc import Iterator, Sequence
from itertools import permutations
from math import exp, lgamma, log
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from unweave.artifact.records import Record
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.prompts import prompt_rows
from unweave.validate.placed import Edit, Placed
from unweave.validate.protocols.asking import answers

MARKS = "ABCDEFGHIJ"
PUBLIC_FORGET = "wmdp-bio"
PUBLIC_RETAIN = (
    "high_school_us_history",
    "college_computer_science",
    "high_school_geography",
    "human_aging",
)
"""Subjects of MMLU that SAEBench retains."""


class Question(Record):
    """A question with choices of which one is right."""

    question: str
    choices: tuple[str, ...] = Field(min_length=2, max_length=len(MARKS))
    answer: int = Field(ge=0)
    """Index of the right choice."""
    topic: str = ""
    """What a list of choices says that the question is about."""

    @model_validator(mode="after")
    def _listed(self) -> "Question":
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} of {len(self.choices)} choices, counted from 0")
        return self

    def ordered(self, order: Sequence[int]) -> "Question":
        """With its choices in another order."""
        return Question(
            question=self.question,
            choices=tuple(self.choices[i] for i in order),
            answer=list(order).index(self.answer),
            topic=self.topic,
        )


class AskingSettings(BaseModel):
    """How questions are put."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Literal["letters", "cloze"] = "letters"
    """`letters`: choices are listed and the answer is a letter, as published. `cloze`: the question
    is the beginning of a sentence, and choices are compared by their first token after it, which a
    network that cannot work with lists may know."""
    before: str = ""
    """What stands before a list of choices; for a network that chats, the marks of its turns."""
    after: str = "\nAnswer:"
    """What stands after it."""
    batch: PositiveInt = 16
    """Prompts run together, without influence on the numbers."""


class Asked(NamedTuple):
    """One prompt and the tokens that stand for its choices."""

    row: list[int]
    choices: list[list[int]]
    """By choice; any of them counts."""
    answer: int


def read_questions(path: Path) -> list[Question]:
    """The questions of a file of JSON lines.

    Raises:
        UserError: the file is missing or a line is no question.
    """
    if not path.is_file():
        raise UserError(
            f"No file {path}: write questions as JSON lines of question, choices, answer"
        )
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(Question.model_validate_json(line))
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise UserError(f"{path} line {number} is no question: {reason}") from error
    return found


def write_questions(path: Path, questions: Sequence[Question]) -> None:
    """Write what `read_questions` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (question.model_dump_json() + "\n" for question in questions)
    path.write_text("".join(lines), encoding="utf-8")


def fetch_questions(name: str) -> list[Question]:
    """`wmdp-bio` or a subject of MMLU from the hub (test split).

    Raises:
        UserError: the package `datasets` is missing or the hub did not give them.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"The questions {name} need the package datasets: pip install 'unweave[hub]', or give"
            " your own with --data"
        ) from error
    folder = ("cais/wmdp", name) if name.startswith("wmdp") else ("cais/mmlu", name)
    topic = {"wmdp-bio": "biology"}.get(name, name.replace("_", " "))
    try:
        return [
            Question(
                question=row["question"], choices=row["choices"], answer=row["answer"], topic=topic
            )
            for row in load_dataset(*folder, split="test")
        ]
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The hub did not give the questions {name}: {reason}") from error


def questions_of_pairs(
    pairs: Sequence[tuple[str, str]], template: str, *, choices: int = 4, seed: int = 0
) -> list[Question]:
    """A question for each pair: `%s` of the template becomes the first, the second is the answer.

    Distractors are other pairs' answers, drawn at random; a template of "The capital of %s is"
    makes beginnings of sentences for the form `cloze`.
    """
    random = np.random.default_rng(seed)
    every = sorted({answer for _, answer in pairs})
    made = []
    for asked, answer in pairs:
        others = [other for other in every if other != answer]
        drawn = random.choice(len(others), size=min(choices - 1, len(others)), replace=False)
        listed = [answer, *(others[i] for i in drawn)]
        order = random.permutation(len(listed)).tolist()
        made.append(
            Question(
                question=template.replace("%s", asked), choices=tuple(listed), answer=0
            ).ordered(order)
        )
    return made


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Pairs as the function-vectors sets hold them: a JSON list of `input` and `output`."""
    return [(row["input"], row["output"]) for row in json.loads(path.read_text("utf-8"))]


def statements(questions: Sequence[Question]) -> list[str]:
    """Each question followed by its right answer."""
    return [f"{q.question} {q.choices[q.answer]}." for q in questions]


def asked_of(
    subject: Subject, questions: Sequence[Question], settings: AskingSettings
) -> dict[int, Asked]:
    """Prompts by the index of their question; a cloze whose choices begin alike is left out."""
    assert subject.tokenizer is not None
    texts = [q.question if settings.form == "cloze" else _listed(q, settings) for q in questions]
    rows = prompt_rows(subject, texts)
    first = subject.tokenizer.encode_many
    found = {}
    for at, (question, row) in enumerate(zip(questions, rows, strict=True)):
        if settings.form == "cloze":
            choices = [[ids[0]] for ids in first([" " + c.strip() for c in question.choices])]
        else:
            marks = MARKS[: len(question.choices)]
            pairs = zip(first(list(marks)), first([" " + m for m in marks]), strict=True)
            choices = [[plain[-1], spaced[-1]] for plain, spaced in pairs]
        if len({tuple(c) for c in choices}) == len(choices):
            found[at] = Asked(row, choices, question.answer)
    return found


def _listed(question: Question, settings: AskingSettings) -> str:
    about = f" about {question.topic}" if question.topic else ""
    head = f"The following are multiple choice questions (with answers){about}.\n"
    lines = [f"{mark}. {c}" for mark, c in zip(MARKS, question.choices, strict=False)]
    return settings.before + head + "\n".join([question.question, *lines]) + settings.after


def right_answers(
    subject: Subject,
    asked: Sequence[Asked],
    settings: AskingSettings,
    *,
    standing: Sequence[Placed] = (),
    edit: Edit | None = None,
) -> Bool[np.ndarray, " asked"]:
    """Which are answered rightly; with `edit`, by the network whose code is changed on the way."""
    right = np.zeros(len(asked), dtype=bool)
    rows = [one.row for one in asked]
    found = answers(subject, rows, batch=settings.batch, standing=standing, edit=edit)
    for which, logits in found:
        for at, row in zip(which.tolist(), logits, strict=True):
            best = [float(row[tokens].max()) for tokens in asked[at].choices]
            right[at] = int(np.argmax(best)) == asked[at].answer
    return right


class Answered(NamedTuple):
    """What a subject says to questions as they stand."""

    asked: dict[int, Asked]
    """By the index of the question."""
    right: Bool[np.ndarray, " asked"]
    """In the same order."""


def answered(subject: Subject, questions: Sequence[Question], settings: AskingSettings) -> Answered:
    """Put the questions once, in the order of choices that they have."""
    asked = asked_of(subject, questions, settings)
    return Answered(asked, right_answers(subject, list(asked.values()), settings))


def known_questions(
    subject: Subject, questions: Sequence[Question], first: Answered, settings: AskingSettings
) -> list[Asked]:
    """Those answered rightly whatever the order of the choices, of those right in the first.

    A cloze does not show its choices, so that one order is all.
    """
    known = [at for at, right in zip(first.asked, first.right, strict=True) if right]
    for order in _orders(questions) if settings.form == "letters" else ():
        fit = [at for at in known if len(questions[at].choices) == len(order)]
        again = answered(subject, [questions[at].ordered(order) for at in fit], settings)
        lost = {fit[at] for at, ok in zip(again.asked, again.right, strict=True) if not ok}
        known = [at for at in known if at not in lost]
    return [first.asked[at] for at in known]


def _orders(questions: Sequence[Question]) -> Iterator[tuple[int, ...]]:
    for count in sorted({len(q.choices) for q in questions}):
        every = permutations(range(count)) if count <= 4 else _turns(count)
        yield from (order for order in every if list(order) != sorted(order))


def _turns(count: int) -> Iterator[tuple[int, ...]]:
    return (tuple((at + turn) % count for at in range(count)) for turn in range(count))


def chance_of(right: int, total: int, share: float) -> float:
    """Probability of so many right answers or more by guessing (binomial)."""

    def term(k: int) -> float:
        ways = lgamma(total + 1) - lgamma(k + 1) - lgamma(total - k + 1)
        return exp(ways + k * log(share) + (total - k) * log(1 - share))

    return min(1.0, sum(term(k) for k in range(right, total + 1)))
