"""What the disk refused, said in one sentence."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unweave.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRONG_PLACE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY}
# safetensors and SQLite report the same conditions in errors of their own, by text alone.
_FULL_WORDS = ("no space left on device", "os error 28", "database or disk is full")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable place, met while writing `path`, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = _sentence(path, error)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def _sentence(path: Path, error: Exception) -> str | None:
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or any(words in str(error).lower() for words in _FULL_WORDS):
        return (
            f"The disk is full ({_free(path)} left): {path} was not written; "
            f"make room or choose another folder, then run the same command again"
        )
    if code == errno.EFBIG:
        return (
            f"{path} would grow past the largest file allowed here: raise the limit (ulimit -f) "
            f"or choose another folder, then run the same command again"
        )
    if code in _REFUSED:
        return (
            f"{path} cannot be written (permission denied): "
            f"choose a folder that you may write to, or change its permissions"
        )
    if code in _WRONG_PLACE:
        reason = error.strerror if isinstance(error, OSError) else ""
        return f"{path} cannot be written ({reason}): choose another place"
    return None


def _free(path: Path) -> str:
    for folder in path.absolute().parents:
        if folder.is_dir():
            return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"
    return "nothing"
