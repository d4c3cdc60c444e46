"""The manifest: what an artifact was made from, by what, and every file it consists of."""

import subprocess
from pathlib import Path
from typing import Literal

from pydantic import JsonValue, NonNegativeInt, PositiveInt

from unweave._version import __version__
from unweave.artifact.atomic import is_partial, sweep, write_text
from unweave.artifact.hashing import sha256_of_file
from unweave.artifact.identity import identity_of
from unweave.artifact.layout import MANIFEST
from unweave.artifact.reading import record_in
from unweave.artifact.records import Record, SubjectRecord, TextRecord
from unweave.errors import UserError


class CodeRecord(Record):
    """The code that made the artifact."""

    version: str
    """Version of unweave."""
    commit: str | None
    """Commit of the source checkout it ran from, `-dirty` behind it when changed; null if none."""


class FileRecord(Record):
    """One file of the artifact."""

    sha256: str
    """Of its bytes."""
    bytes: NonNegativeInt
    """Its size."""


class Provenance(Record):
    """All that a manifest says apart from the files themselves."""

    subject: SubjectRecord
    text: TextRecord
    settings: dict[str, JsonValue]
    """Every setting, resolved: enough to run it again."""
    seed: int
    """The seed of every random choice."""
    threads: PositiveInt
    """Threads used: sums in another order round otherwise."""
    dtype: str
    """Number format of the parts."""
    parts: list[str]
    """Names of the parts, by layer."""
    explain_rows: NonNegativeInt
    """The first rows of the evidence text: explainers saw these and no others."""


class Manifest(Provenance):
    """manifest.json."""

    format: Literal[1] = 1
    """Version of the artifact's format."""
    code: CodeRecord
    files: dict[str, FileRecord]
    """Every file but the manifest, by its path in the folder."""
    identity: str
    """What two artifacts from equal inputs have in common; see `artifact.identity`."""


def seal(folder: Path, provenance: Provenance) -> Manifest:
    """Hash every file under `folder` and write its manifest; the artifact is then finished.

    Leftovers of killed runs are swept first. Raises UserError for a link, which would not travel.
    """
    sweep(folder)
    files = {path: record_of(folder / path) for path in files_in(folder)}
    digests = [(path, record.sha256) for path, record in files.items()]
    manifest = Manifest(
        **{name: getattr(provenance, name) for name in Provenance.model_fields},
        code=CodeRecord(version=__version__, commit=source_commit()),
        files=files,
        identity=identity_of(folder, digests),
    )
    _write(folder, manifest)
    return manifest


def rerecord(folder: Path, path: str) -> Manifest:
    """Take note that one file (such as report.html) was written anew or added after sealing."""
    manifest = read_manifest(folder)
    files = dict(sorted({**manifest.files, path: record_of(folder / path)}.items()))
    digests = [(name, record.sha256) for name, record in files.items()]
    changed = manifest.model_copy(update={"files": files, "identity": identity_of(folder, digests)})
    _write(folder, changed)
    return changed


def read_manifest(folder: Path) -> Manifest:
    """Read manifest.json; UserError when `folder` is no finished artifact or of another format."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise UserError(f"No folder {folder}: give the folder that decompile wrote (its --out)")
    if not path.is_file():
        raise UserError(f"{folder} has no {MANIFEST}: it is no artifact, or its job is unfinished")
    return record_in(path, Manifest)


def files_in(folder: Path) -> list[str]:
    """The path in `folder` of every file that belongs to it, sorted, the manifest left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise UserError(f"{path} is a link: an artifact holds plain files, put a copy there")
        if path.is_file() and not is_partial(path):
            found.append(path.relative_to(folder).as_posix())
    return [path for path in found if path != MANIFEST]


def record_of(path: Path) -> FileRecord:
    """Hash and measure one file."""
    return FileRecord(sha256=sha256_of_file(path), bytes=path.stat().st_size)


def _write(folder: Path, manifest: Manifest) -> None:
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def source_commit() -> str | None:
    """The commit of the checkout this file belongs to; None for an installed package."""
    here = Path(__file__)
    try:
        for question in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        ):
            answer = subprocess.run(
                ["git", "--no-optional-locks", *question],
                cwd=here.parent,
                capture_output=True,
                text=True,
                timeout=10,
            )
            if answer.returncode:
                return None
        return answer.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
