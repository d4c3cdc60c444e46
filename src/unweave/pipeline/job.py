"""A job that can be cut off at any moment: its folder, its finished stages, its clock.

Everything is made in `.NAME.unfinished` beside the folder asked for, which appears whole at the
end. A stage leaves a small JSON result when it is done and is not done again; a stage that was cut
off starts over, or from its own checkpoints.
"""

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from unweave.activations.workers import Workers
from unweave.artifact.atomic import sweep, write_json
from unweave.artifact.disk import disk_errors
from unweave.artifact.layout import MANIFEST
from unweave.artifact.manifest import read_manifest
from unweave.errors import UserError
from unweave.pipeline.settings import ResolvedSettings
from unweave.progress import Progress
from unweave.subject import Subject

Result = TypeVar("Result", bound=BaseModel)


class Request(BaseModel):
    """What makes two runs the same job."""

    subject: str
    """Fingerprint of its weights."""
    version: str
    """Of unweave: another version's unfinished work may not fit this one's code."""
    settings: dict[str, object]
    """All settings that the result depends on."""

    @classmethod
    def of(cls, subject: Subject, settings: ResolvedSettings, version: str) -> "Request":
        """The request that settings make of a subject."""
        chosen = settings.model_dump(mode="json", exclude={"threads", "checkpoint_seconds"})
        return cls(subject=subject.fingerprint, version=version, settings=chosen)


@dataclass
class Job:
    """One main job under way."""

    subject: Subject
    settings: ResolvedSettings
    workers: Workers
    out: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage took."""

    @property
    def folder(self) -> Path:
        """Where the work lies while it is unfinished."""
        return unfinished(self.out)

    @property
    def artifact(self) -> Path:
        """The artifact in the making."""
        return self.folder / "artifact"

    def stage(self, name: str, kind: type[Result], work: Callable[[], Result]) -> Result:
        """Do a stage, unless it has been done; returns its small result either way.

        The time of an attempt that was cut off is not counted.
        """
        done = self.folder / "done" / f"{name}.json"
        if not done.is_file():
            start = time.monotonic()
            result = work().model_dump(mode="json")
            seconds = time.monotonic() - start
            done.parent.mkdir(exist_ok=True)
            write_json(done, {"seconds": seconds, "peak": peak_rss_bytes(), "result": result})
        return self.result(name, kind)

    def result(self, name: str, kind: type[Result]) -> Result:
        """What a finished stage handed on."""
        text = (self.folder / "done" / f"{name}.json").read_text(encoding="utf-8")
        record = json.loads(text)
        self.seconds[name] = record["seconds"]
        return kind.model_validate(record["result"])

    def peak(self) -> int:
        """Largest resident memory of all attempts so far, bytes."""
        records = (self.folder / "done").glob("*.json")
        return max([peak_rss_bytes(), *(json.loads(r.read_text())["peak"] for r in records)])

    def withdraw(self) -> None:
        """Leave nothing behind: the request was refused before any of it was done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self) -> Path:
        """Put the finished artifact where it was asked for."""
        if self.out.is_dir():
            self.out.rmdir()  # empty: `begin` has looked
        self.artifact.rename(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.out


def unfinished(out: Path) -> Path:
    """The folder in which the artifact for `out` is made."""
    return out.parent / f".{out.name}.unfinished"


def finished(out: Path, request: Request) -> bool:
    """Whether `out` holds the very artifact that is asked for."""
    if not (out / MANIFEST).is_file():
        return False
    manifest = read_manifest(out)
    found = (manifest.subject.fingerprint, manifest.code.version, manifest.settings)
    return found == (request.subject, request.version, request.settings)


def begin(out: Path, request: Request) -> None:
    """Make or find again the job's folder; refuse one that belongs to another job."""
    folder = unfinished(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        what = "another artifact" if (out / MANIFEST).is_file() else "something else"
        raise UserError(f"{out} holds {what} already: choose another --out or remove it")
    note = folder / "request.json"
    wanted = json.loads(request.model_dump_json())
    if not note.is_file():
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        (folder / "artifact").mkdir(exist_ok=True)
        write_json(note, wanted)
        return
    found = json.loads(note.read_text(encoding="utf-8"))
    if found != wanted:
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        if "settings" in differing:
            old, new = found.get("settings", {}), wanted["settings"]
            differing += [f"settings.{key}" for key in new if old.get(key) != new[key]]
        raise UserError(
            f"{folder} holds an unfinished run with other inputs ({', '.join(differing)}): "
            "give the same ones to go on with it, remove it, or choose another --out"
        )
    sweep(folder)


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
