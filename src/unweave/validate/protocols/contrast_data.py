"""Prompts of circuit tasks as contrasts of a subject: one's own files, the public ones, the hub's.

A file NAME_prompts.json (the form of UFO-101/auto-circuit) holds

    {"prompts": [{"clean": "...", "corrupt": "...", "answers": [" a"], "wrong_answers": [" b"]}]}

and a file of feature circuits' subject-verb agreement one JSON object a line: `clean_prefix`,
`patch_prefix`, `clean_answer`, `patch_answer`. MIB's own sets come from the hub (extra `hub`).

An answer counts by its first token; tokens that right and wrong answers share tell nothing and are
left out. Pairs whose prompts have not the same number of tokens cannot be patched place by place.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unweave.circuits.contrasts import Contrast
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.protocols.protocol import Refused

FILES = {
    "ioi": "*ioi_prompts.json",
    "greater_than": "*greaterthan*_prompts.json",
    "docstring": "*docstring*_prompts.json",
    "animal_diet": "*animal_diet*_prompts.json",
}
"""Public tasks by name, and what their files are called."""


class Prompted(NamedTuple):
    """A pair of prompts in words."""

    clean: str
    """The prompt."""
    corrupt: str
    """The prompt whose answer is another."""
    right: tuple[str, ...]
    """What goes on rightly after the clean prompt, spaces included."""
    wrong: tuple[str, ...]
    """What does not."""


class CircuitTask(NamedTuple):
    """A task, ready for one subject."""

    name: str
    """What it is called in results."""
    contrasts: tuple[Contrast, ...]
    """Its pairs, shuffled, none twice."""
    unlike: int
    """Pairs left out since their prompts differ in length, or their answers in no first token."""


def task_of(
    subject: Subject, name: str, prompts: Sequence[Prompted], *, most: int, seed: int = 0
) -> CircuitTask:
    """Up to `most` of the pairs as the subject reads them.

    Raises:
        Refused: the subject has no tokenizer.
    """
    if subject.tokenizer is None:
        raise Refused(f"{subject.name} has no tokenizer, so prompts in words cannot be put to it")
    drawn = list(dict.fromkeys(prompts))
    random.Random(seed).shuffle(drawn)
    found: list[Contrast] = []
    unlike = 0
    for one in drawn:
        contrast = _contrast(subject, one)
        if contrast is None:
            unlike += 1
        else:
            found.append(contrast)
        if len(found) == most:
            break
    return CircuitTask(name, tuple(found), unlike)


def _contrast(subject: Subject, one: Prompted) -> Contrast | None:
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    start = [] if subject.start_token is None else [subject.start_token]
    clean, corrupt = (tuple(start + ids) for ids in tokenizer.encode_many([one.clean, one.corrupt]))
    right, wrong = (
        {ids[0] for ids in tokenizer.encode_many(list(side)) if ids}
        for side in (one.right, one.wrong)
    )
    right, wrong = right - wrong, wrong - right
    if len(clean) != len(corrupt) or not right or not wrong:
        return None
    return Contrast(clean, corrupt, tuple(sorted(right)), tuple(sorted(wrong)))


def prompt_files(folder: Path) -> dict[str, Path]:
    """The tasks whose files lie in a folder or one of its folders, by name."""
    found = {}
    for name, pattern in FILES.items():
        for path in sorted([*folder.glob(pattern), *folder.glob(f"*/{pattern}")])[:1]:
            found[name] = path
    return found


def read_prompts(path: Path) -> list[Prompted]:
    """The pairs of a file NAME_prompts.json.

    Raises:
        UserError: it is not of that form.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["prompts"]
        return [
            Prompted(
                one["clean"], one["corrupt"], tuple(one["answers"]), tuple(one["wrong_answers"])
            )
            for one in records
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold pairs of prompts ({error!r}): it should be an object with a"
            " list `prompts` of clean, corrupt, answers and wrong_answers"
        ) from error


def read_agreement(path: Path) -> list[Prompted]:
    """The pairs of a file of subject-verb agreement, one JSON object a line.

    Raises:
        UserError: it is not of that form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
        return [
            Prompted(
                one["clean_prefix"], one["patch_prefix"],
                (one["clean_answer"],), (one["patch_answer"],),
            )
            for one in records
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold pairs of prefixes ({error!r}): each line should be an object"
            " with clean_prefix, patch_prefix, clean_answer and patch_answer"
        ) from error


def _ioi(row: Mapping[str, Any]) -> Prompted:
    names = row["metadata"]
    return Prompted(
        row["prompt"], row["s2_io_flip_counterfactual"]["prompt"],
        (f" {names['indirect_object']}",), (f" {names['subject']}",),
    )  # fmt: skip


def _choice(row: Mapping[str, Any]) -> Prompted:
    """The letter of the right choice against that of the prompt with other letters."""
    other = row["symbol_counterfactual"]
    right = row["choices"]["label"][row["answerKey"]]
    wrong = other["choices"]["label"][other["answerKey"]]
    return Prompted(row["prompt"], other["prompt"], (f" {right}",), (f" {wrong}",))


HUB: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Prompted]]] = {
    "ioi": (("mib-bench/ioi",), _ioi),
    "mcqa": (("mib-bench/copycolors_mcqa", "4_answer_choices"), _choice),
    "arc_easy": (("mib-bench/arc_easy",), _choice),
}
"""MIB's own sets: what the hub calls them, and how a row is read."""


def hub_prompts(name: str, *, most: int) -> list[Prompted]:
    """The first pairs of one of MIB's sets.

    Raises:
        UserError: the extra `hub` is missing, or the hub does not answer.
    """
    where, read = HUB[name]
    found: list[Prompted] = []
    for row in _rows(*where):
        found.append(read(row))
        if len(found) == most:
            break
    return found


def _rows(*names: str) -> Iterator[Mapping[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UserError(
            f"The data set {names[0]} needs the package datasets: pip install 'unweave[hub]', or"
            " give a folder of prompts with --data"
        ) from error
    try:
        yield from load_dataset(*names, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The hub did not give data set {names[0]} ({reason}): give a folder of prompts"
            " with --data"
        ) from error
