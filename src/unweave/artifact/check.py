"""The conformance test of an artifact: every violation, one sentence each.

Files first (there, unchanged, none unlisted), then what is in them (`artifact.contents`), then the
identity. Damage never stops the test: what can still be read is still checked.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unweave.artifact import layout
from unweave.artifact.contents import content_faults
from unweave.artifact.firings import FILES
from unweave.artifact.hashing import sha256_of_file
from unweave.artifact.identity import identity_of
from unweave.artifact.manifest import Manifest, files_in, read_manifest
from unweave.errors import UserError
from unweave.progress import QUIET, Advance, Progress


class Verdict(NamedTuple):
    """What the conformance test found."""

    files: int
    """Files listed in the manifest."""
    violations: list[str]
    """A sentence each; empty when the artifact is as its manifest says."""


def check(folder: Path, *, progress: Progress = QUIET) -> Verdict:
    """Test `folder` for conformance; UserError only when there is no manifest to hold it to."""
    if not (folder / layout.MANIFEST).is_file():
        read_manifest(folder)  # says what is missing
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return Verdict(0, [str(error)])
    total = sum(record.bytes for record in manifest.files.values())
    with progress.task("Checking", total=max(total, 1), unit="bytes") as advance:
        violations = list(_file_faults(folder, manifest, advance))
    violations += content_faults(folder, manifest)
    violations += _identity_faults(folder, manifest)
    return Verdict(len(manifest.files), violations)


def _file_faults(folder: Path, manifest: Manifest, advance: Advance) -> Iterator[str]:
    try:
        present = set(files_in(folder))
    except UserError as error:
        yield str(error)
        return
    for path in sorted(present - manifest.files.keys()):
        yield f"{path} lies in the folder but not in the manifest"
    for path, record in manifest.files.items():
        if path not in present:
            yield f"{path} is in the manifest but not in the folder"
            continue
        size = (folder / path).stat().st_size
        if size != record.bytes:
            yield f"{path} has {size:,} bytes where the manifest says {record.bytes:,}"
        elif sha256_of_file(folder / path) != record.sha256:
            yield f"{path} has been changed: its SHA-256 is not the manifest's"
        advance(record.bytes)
    for path in _wanted(manifest):
        if path not in manifest.files:
            yield f"{path} belongs to every artifact but is not in the manifest"


def _wanted(manifest: Manifest) -> Iterator[str]:
    """What an artifact must hold."""
    yield from (layout.SCORES, layout.SAMPLES, layout.METRICS, layout.REPORT)
    yield from (layout.EDGES_TABLE, layout.DESCRIPTIONS, layout.TOKENS, layout.TOKEN_TEXT)
    for part in manifest.parts:
        yield layout.weights_of(Path(), part).as_posix()
        yield layout.spec_of(Path(), part).as_posix()
        yield layout.features_of(Path(), part).as_posix()
        yield from ((layout.firings_of(Path(), part) / f"{name}.npy").as_posix() for name in FILES)


def _identity_faults(folder: Path, manifest: Manifest) -> Iterator[str]:
    digests = [(path, record.sha256) for path, record in manifest.files.items()]
    try:
        identity = identity_of(folder, digests)
    except (OSError, ValueError):
        return  # a missing or unreadable file, said above
    if identity != manifest.identity:
        yield "the manifest's identity is not that of the files it lists"
