"""Words of the first-letter task: which tokens are words, their prompts, and what is read there."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.artifact.hashing import sha256_of_json
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.subject.prompts import by_length, padded, prompt_rows
from unweave.validate.protocols.absorption_measure import Words
from unweave.validate.protocols.asking import answers

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class WordSettings(BaseModel):
    """Settings of the prompts; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ending: str = " has the first letter:"
    """What follows a word."""
    examples: PositiveInt = 10
    """Words spelled out before the one asked for."""
    batch: PositiveInt = 32
    """Prompts run together, without influence on the numbers."""


class Prompted(NamedTuple):
    """Words with a prompt each."""

    token: Int[Tensor, " words"]
    """Each word is one token."""
    letter: Int[Tensor, " words"]
    """0 for a to 25 for z."""
    rows: list[list[int]]
    """Token ids of each prompt."""
    at: int
    """Where the word stands, counted from the end."""


def alphabetic_tokens(subject: Subject) -> dict[int, str]:
    """The tokens made of English letters alone, a leading space allowed, with their texts."""
    assert subject.tokenizer is not None
    found = {}
    for token in range(min(len(subject.tokenizer), subject.vocab_size)):
        text = subject.tokenizer.piece(token)
        body = text.removeprefix(" ")
        if body.isascii() and body.isalpha():
            found[token] = text
    return found


def prompted_words(
    subject: Subject, tokens: dict[int, str], wanted: int, settings: WordSettings, *, seed: int
) -> Prompted:
    """A prompt for each of some words drawn at random, with examples drawn from all the others.

    A word that is no token of its own in its prompt is left out.
    """
    assert subject.tokenizer is not None
    random = np.random.default_rng(seed)
    ids = list(tokens)
    drawn = [ids[i] for i in random.permutation(len(ids))[:wanted]]
    texts = [_prompt(tokens, ids, token, settings, random) for token in drawn]
    at = -1 - len(subject.tokenizer.encode(settings.ending))
    rows = prompt_rows(subject, texts)
    kept = [i for i, row in enumerate(rows) if len(row) >= -at and row[at] == drawn[i]]
    letters = [LETTERS.index(tokens[drawn[i]].strip()[0].lower()) for i in kept]
    return Prompted(
        torch.tensor([drawn[i] for i in kept], dtype=torch.long),
        torch.tensor(letters, dtype=torch.long),
        [rows[i] for i in kept],
        at,
    )


def _prompt(
    tokens: dict[int, str],
    ids: Sequence[int],
    word: int,
    settings: WordSettings,
    random: np.random.Generator,
) -> str:
    drawn = random.choice(len(ids), size=min(settings.examples + 1, len(ids)), replace=False)
    shown = [ids[i] for i in drawn if ids[i] != word][: settings.examples]
    lines = [tokens[t] + settings.ending + _answer(tokens[t]) for t in shown]
    return "\n" + "\n".join([*lines, tokens[word] + settings.ending])


def _answer(word: str) -> str:
    return " " + word.strip()[0].upper()


def spelling_accuracy(subject: Subject, words: Prompted, settings: WordSettings) -> float:
    """Share of prompts after which the likeliest token is the word's first letter, as a capital."""
    assert subject.tokenizer is not None
    answer = torch.tensor([subject.tokenizer.encode(" " + s.upper())[0] for s in LETTERS])
    right = 0
    for index, logits in answers(subject, words.rows, batch=settings.batch):
        right += int((logits.argmax(1) == answer[words.letter[index]]).sum())
    return right / max(1, len(words.rows))


@torch.no_grad()
def word_vectors(
    subject: Subject,
    site: str,
    words: Prompted,
    settings: WordSettings,
    *,
    store: Path,
    progress: Progress = QUIET,
) -> Words:
    """The site's vectors at the words; kept in `store`, so that other dictionaries find them."""
    asked = {
        "subject": subject.fingerprint,
        "site": site,
        "rows": sha256_of_json([list(row) for row in words.rows]),
    }
    path = store / f"first-letter-{sha256_of_json(asked)[:16]}.safetensors"
    if path.is_file():
        return Words(load_tensors(path)["x"], words.letter)
    found: list[Tensor] = [torch.empty(0)] * len(words.rows)
    with progress.task("absorption: words", total=len(words.rows), unit="words") as advance:
        for index in by_length(words.rows, settings.batch):
            group = padded([words.rows[at] for at in index.tolist()])
            out = subject.run(group.tokens, capture=[site], logits=False).sites[site]
            place = (group.last + 1 + words.at).to(out.device)
            vectors = out[torch.arange(len(index), device=out.device), place].flatten(1)
            for at, vector in zip(index.tolist(), vectors.float().cpu(), strict=True):
                found[at] = vector
            advance(len(index))
    x = torch.stack(found)
    save_tensors(path, {"x": x})
    return Words(x, words.letter)
