"""Files and folders that appear whole or not at all.

1. Write to a partial beside the target: `.NAME.PID-RANDOM.partial`, same folder, same file system.
2. Flush it to the disk.
3. Rename it over the target, which is one step for the file system.

Any exception, Ctrl-C included, removes the partial. A kill cannot; its partial carries the number
of the dead process, and `sweep` removes it at the next start.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from unweave.artifact.disk import disk_errors

Json = None | bool | int | float | str | Sequence[object] | Mapping[str, object]
"""What has a JSON form, all the way down; numbers must be finite."""

_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}\.partial")
_ours: set[Path] = set()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on leaving, what was written there becomes `path`.

    Missing parent folders are made. Raises UserError when the disk is full or the folder cannot be
    written; then, as after any other exception, an older `path` is untouched.
    """
    with disk_errors(path):
        partial = _partial_of(path)
        try:
            yield partial
            _flush(partial)
            os.replace(partial, path)
            _flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)
            _ours.discard(partial)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, it becomes `path`, replacing what was there.

    Replacing takes two renames: killed between them, neither the old nor the new folder is in
    place, never a mixture. Raises as `new_file` does.
    """
    with disk_errors(path):
        partial = _partial_of(path)
        try:
            partial.mkdir()
            yield partial
            for entry in [*partial.rglob("*"), partial]:
                _flush(entry)
            _replace_folder(partial, path)
            _flush(path.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            _ours.discard(partial)


def write_bytes(path: Path, content: bytes) -> None:
    """Make `path` hold exactly `content`; see `new_file`."""
    with new_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Make `path` hold `content` in UTF-8, newlines as given; see `new_file`."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Json) -> None:
    """Write JSON with sorted keys and shortest exact numbers: equal content, equal bytes.

    NaN and infinity have no JSON form: they raise ValueError.
    """
    text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_json_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write one JSON object a line, in the order given, keys sorted."""
    lines = (
        json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    )
    write_text(path, "".join(lines))


def is_partial(path: Path) -> bool:
    """Whether the name is that of an unfinished file or folder."""
    return _PARTIAL.fullmatch(path.name) is not None


def sweep(folder: Path) -> list[Path]:
    """Remove what killed runs left half-written anywhere under `folder`; return what went.

    Partials of processes that still live are left alone.
    """
    stale = [path for path in sorted(folder.rglob(".*.partial")) if _is_stale(path)]
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return stale


def _partial_of(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    _ours.add(partial)
    return partial


def _is_stale(path: Path) -> bool:
    match = _PARTIAL.fullmatch(path.name)
    if match is None:
        return False
    pid = int(match["pid"])
    if pid == os.getpid():  # a container gives every run the same number
        return path not in _ours
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return False


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace_folder(partial: Path, path: Path) -> None:
    if not path.exists():
        os.rename(partial, path)
        return
    aside = _partial_of(path)
    try:
        os.rename(path, aside)
        try:
            os.rename(partial, path)
        except OSError:
            with suppress(OSError):
                os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        _ours.discard(aside)
