"""Text for a subject to read: named sources, files, folders, data sets of the hub."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from unweave.errors import UserError
from unweave.progress import Progress
from unweave.subject.catalog import DOCUMENTS, find_text, list_texts
from unweave.subject.network import Subject

Ids = np.ndarray
"""Token ids of one document, int32, without a start token."""


@dataclass(frozen=True)
class Need:
    """How much text is asked for."""

    tokens: int
    """Tokens in all."""
    context: int
    """Tokens of one row, its start token included."""
    seed: int
    """Order of the documents, and the random numbers of a subject that writes its own."""


@runtime_checkable
class TextSource(Protocol):
    """Where documents come from."""

    @property
    def name(self) -> str:
        """What it was asked for by."""
        ...

    def documents(self, subject: Subject, need: Need, progress: Progress) -> Iterator[Ids]:
        """Yield token ids document by document, in seeded random order, until there are no more.

        The reader stops when it has enough.
        """
        ...

    def provenance(self) -> str:
        """Say in a sentence where the text comes from."""
        ...


CHUNK = 256
"""Documents tokenised at a time."""


@dataclass(frozen=True)
class PlainText:
    """Documents that are strings."""

    name: str
    """What it was asked for by."""
    about: str
    """Where it comes from."""
    read: Callable[[int], Iterator[str]]
    """Gives the documents in an order that the seed decides."""

    def documents(self, subject: Subject, need: Need, progress: Progress) -> Iterator[Ids]:
        """Tokenise the documents in seeded random order."""
        tokenizer = subject.tokenizer
        if tokenizer is None:
            raise UserError(f"{subject.name} has no tokenizer, so it cannot read text")
        chunk: list[str] = []
        for text in self.read(need.seed):
            chunk.append(text)
            if len(chunk) == CHUNK:
                yield from _arrays(tokenizer.encode_many(chunk))
                chunk = []
        yield from _arrays(tokenizer.encode_many(chunk))

    def provenance(self) -> str:
        """Say in a sentence where the text comes from."""
        return self.about


def _arrays(rows: Sequence[Sequence[int]]) -> Iterator[Ids]:
    for row in rows:
        if row:
            yield np.asarray(row, dtype=np.int32)


def open_text(name: str) -> TextSource:
    """Find a text: `self`, `heldout`, `wiki`, a .txt or .jsonl file, a folder, `hub:DATASET`.

    A .txt file is cut at blank lines into documents of about 2,000 characters; each line of a
    .jsonl file is an object whose `text` is one document; a folder is all such files in it.

    Raises:
        UserError: nothing of that name, or it has not been fetched.
    """
    from unweave.subject.own_text import HeldOut, OwnText

    if name == "self":
        return OwnText()
    if name == "heldout":
        return HeldOut()
    if name.startswith("hub:"):
        return _hub_text(name)
    entry = find_text(name)
    if entry is not None and entry.folder is not None:
        if not entry.fetched:
            raise UserError(
                f"the text {name} is not on this machine yet; fetch it with: "
                f"unweave texts fetch {name}"
            )
        file = entry.folder / DOCUMENTS
        about = f"{entry.about} ({entry.licence})"
        return PlainText(name, about, lambda seed: _shuffled(read_documents(file), seed))
    path = Path(name).expanduser()
    if not path.exists():
        known = ", ".join(entry.name for entry in list_texts())
        raise UserError(
            f"there is no text {name}: no such file or folder, and not one of {known} or "
            "hub:DATASET"
        )
    files = _files(path)
    about = f"{path.name}, {len(files)} files" if path.is_dir() else path.name
    return PlainText(
        name, about, lambda seed: _shuffled([t for f in files for t in read_documents(f)], seed)
    )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".jsonl") and f.is_file())
    if not files:
        raise UserError(f"folder {path} has no .txt or .jsonl file")
    return files


def _shuffled(documents: Sequence[str], seed: int) -> Iterator[str]:
    for at in np.random.default_rng(seed).permutation(len(documents)):
        yield documents[at]


def read_documents(file: Path) -> list[str]:
    """The documents of a .txt or .jsonl file.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is of another kind or has a bad line.
    """
    if file.suffix not in (".txt", ".jsonl"):
        raise UserError(f"text file {file} is neither .txt nor .jsonl")
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text: byte {error.start} cannot be decoded; convert it first"
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    return _json_documents(text, file) if file.suffix == ".jsonl" else _blocks(text)


def _json_documents(text: str, file: Path) -> list[str]:
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} line {number} is not a JSON object with a text") from error
        if not isinstance(document, str):
            raise UserError(f"{file} line {number}: its text is no string")
        documents.append(document)
    return [document for document in documents if document.strip()]


BLOCK = 2000
"""Characters after which a blank line ends a document of a .txt file."""


def _blocks(text: str) -> list[str]:
    """Cut at blank lines, keeping neighbouring paragraphs together up to `BLOCK` characters."""
    documents: list[str] = []
    paragraphs: list[str] = []
    size = 0
    for paragraph in text.replace("\r\n", "\n").split("\n\n"):
        if not paragraph.strip():
            continue
        paragraphs.append(paragraph.strip("\n"))
        size += len(paragraph)
        if size >= BLOCK:
            documents.append("\n\n".join(paragraphs))
            paragraphs, size = [], 0
    return documents + (["\n\n".join(paragraphs)] if paragraphs else [])


def _hub_text(name: str) -> TextSource:
    """Text of a data set of the hub, `hub:OWNER/NAME`, streamed; column `text`, split `train`."""
    dataset = name.removeprefix("hub:")

    def read(seed: int) -> Iterator[str]:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise UserError(
                f"text {name} needs the package datasets; install it with: "
                "pip install 'unweave[hub]'"
            ) from error
        try:
            rows = load_dataset(dataset, split="train", streaming=True)
            for row in rows.shuffle(seed=seed, buffer_size=1000):
                if not isinstance(row.get("text"), str):
                    raise UserError(f"data set {dataset} has no column of strings named text")
                if row["text"].strip():
                    yield row["text"]
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"the hub did not give data set {dataset}: {reason}") from error

    return PlainText(name, f"data set {dataset} of the hub, split train", read)
