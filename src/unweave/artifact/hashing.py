"""Digests of files and of plain values."""

import hashlib
import json
from pathlib import Path

from unweave.artifact.atomic import Json


def sha256_of_bytes(content: bytes) -> str:
    """The SHA-256 of `content`, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hex digits; read in pieces, never whole."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_of_json(content: Json) -> str:
    """The SHA-256 of a value's canonical JSON: sorted keys, no spaces, UTF-8.

    Two values have the same digest when they are equal as JSON; NaN raises ValueError.
    """
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return sha256_of_bytes(text.encode("utf-8"))
