"""Rows of tokens: documents split into training and held-out ones, then packed."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject.network import Subject
from unweave.subject.texts import Ids, Need, TextSource, open_text


@dataclass(frozen=True)
class TokenRows:
    """Text as a subject reads it; every row is full and begins with the subject's start token."""

    train: Int[Tensor, "train_rows pos"]
    """Rows to train on, in random order."""
    heldout: Int[Tensor, "heldout_rows pos"]
    """Rows of documents that `train` has nothing of."""
    source: str
    """Name that the text was asked for by."""
    description: str
    """Where the text comes from, how much of it there is and how it was cut."""
    sha256: str
    """Hex digest over the shapes and the ids of both, as little-endian int32."""

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return self.train.numel() + self.heldout.numel()


def token_rows(
    subject: Subject,
    source: TextSource | str,
    *,
    tokens: int,
    context: int,
    seed: int = 0,
    heldout_share: float = 0.1,
    progress: Progress = QUIET,
) -> TokenRows:
    """Read about `tokens` tokens of text and pack them into rows of exactly `context`.

    Documents are taken in seeded random order, split into held-out (`heldout_share` of the tokens)
    and training ones, then laid end to end with a blank line between them and cut into rows. A
    text of a single document is cut in two instead. Less text than asked for is said and used.
    Equal arguments give equal rows.

    Raises:
        UserError: the text is empty or gives no two rows, `tokens` or `context` make no sense, or
            the source cannot be read.
    """
    if isinstance(source, str):
        source = open_text(source)
    _check_request(subject, tokens, context, heldout_share)
    start = subject.start_token
    width = context - (start is not None)
    rows = max(2, tokens // context)
    documents = source.documents(subject, Need(rows * context, context, seed), progress)
    train, heldout, used = _cut(subject, source.name, documents, rows, width, heldout_share)
    if len(train) + len(heldout) < rows:
        progress.say(
            f"The text {source.name} has {(len(train) + len(heldout)) * context:,} tokens in full "
            f"rows, fewer than the {tokens:,} asked for: using those"
        )
    random = np.random.default_rng(seed)
    return _finish(source, used, start, random.permutation(train), random.permutation(heldout))


def _cut(
    subject: Subject, name: str, documents: Iterator[Ids], rows: int, width: int, share: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of `width` to train on and to hold out, and the number of documents behind them."""
    taken = _enough(documents, rows * width)
    there = sum(map(len, taken))
    if not there:
        raise UserError(f"the text {name} is empty")
    separator = _separator(subject)
    wanted = max(1, round(share * min(rows, there // width)))
    heldout, train = _split(taken, wanted * width)
    held = _pack(heldout, separator, width)[:wanted]
    kept = _pack(train, separator, width)
    while len(kept) < rows - len(held) and (
        rest := _enough(documents, (rows - len(held) - len(kept)) * width)
    ):
        train += rest  # what rounding to whole documents and rows has cost
        kept = _pack(train, separator, width)
    if not len(held) or not len(kept):
        raise UserError(
            f"the text {name} has {there} tokens: too few for one row of {width} to train on and "
            "one to hold out; give more text or a shorter context"
        )
    _check_ids(subject, name, held, kept)
    return kept[: rows - len(held)], held, len(heldout) + len(train)


def _check_request(subject: Subject, tokens: int, context: int, share: float) -> None:
    if not 2 <= context <= subject.context:
        raise UserError(
            f"rows of {context} tokens do not suit {subject.name}: from 2 to {subject.context}"
        )
    if tokens < 2 * context:
        raise UserError(
            f"{tokens} tokens are fewer than two rows of {context}, one to train on and one to "
            "hold out; ask for more tokens or a shorter context"
        )
    if not 0 < share < 1:
        raise UserError(f"the held-out share of a text lies between 0 and 1, not at {share}")


def _enough(documents: Iterator[Ids], tokens: int) -> list[Ids]:
    taken: list[Ids] = []
    total = 0
    for document in documents:
        taken.append(document)
        total += len(document)
        if total >= tokens:
            break
    return taken


def _separator(subject: Subject) -> Ids:
    """What stands between documents: a blank line. A start token there would act as at the start
    of a row, where its massive activations are expected and set aside; here they would not be.
    """
    ids = subject.tokenizer.encode("\n\n") if subject.tokenizer else []
    return np.asarray(ids, dtype=np.int32)


def _split(documents: Sequence[Ids], wanted: int) -> tuple[list[Ids], list[Ids]]:
    """Documents to hold out, about `wanted` tokens of them, and the others."""
    heldout: list[Ids] = []
    train: list[Ids] = []
    total = 0
    for document in documents:
        if total < wanted and total + len(document) <= wanted * 1.5:
            heldout.append(document)
            total += len(document)
        else:
            train.append(document)
    gap = wanted - total
    if gap <= 0 or not train:
        return heldout, train
    # Whole documents do not come out even: one that fills the gap, unless it is half of the text.
    filling = [at for at, document in enumerate(train) if len(document) >= gap]
    at = min(filling, key=lambda i: len(train[i]), default=None)
    if at is not None and 2 * len(train[at]) <= sum(map(len, train)):
        heldout.append(train.pop(at))
    else:
        at = max(range(len(train)), key=lambda i: len(train[i]))
        cut = max(0, len(train[at]) - gap)
        heldout.append(train[at][cut:])
        train[at] = train[at][:cut]
    return heldout, train


def _pack(documents: Sequence[Ids], separator: Ids, width: int) -> np.ndarray:
    """Lay documents end to end and cut full rows of `width`; a row that begins with a document
    needs no separator before it.
    """
    pieces: list[Ids] = []
    at = 0
    for document in documents:
        if at and len(separator):
            pieces.append(separator)
            at += len(separator)
        pieces.append(document)
        at = (at + len(document)) % width
    line = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    return line[: len(line) // width * width].reshape(-1, width)


def _check_ids(subject: Subject, name: str, *parts: np.ndarray) -> None:
    highest = max(int(part.max()) for part in parts)
    if highest >= subject.vocab_size:
        raise UserError(
            f"the text {name} has token id {highest}, outside the vocabulary of {subject.name}, "
            f"{subject.vocab_size}: its tokenizer does not belong to its weights"
        )


def _finish(
    source: TextSource,
    documents: int,
    start: int | None,
    train: np.ndarray,
    heldout: np.ndarray,
) -> TokenRows:
    digest = hashlib.sha256()
    parts = []
    for rows in (train, heldout):
        if start is not None:
            rows = np.concatenate([np.full((len(rows), 1), start, rows.dtype), rows], axis=1)
        digest.update(f"{rows.shape}".encode())
        digest.update(rows.astype("<i4").tobytes())
        parts.append(torch.from_numpy(rows.astype(np.int64)))
    context = parts[0].shape[1]
    about = (
        f"{source.provenance()}; {documents:,} documents in rows of {context} tokens, "
        f"{len(train):,} to train on and {len(heldout):,} held out"
    )
    return TokenRows(parts[0], parts[1], source.name, about, digest.hexdigest())
