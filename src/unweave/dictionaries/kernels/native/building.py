"""Compile the C sources into a shared library once a machine, and load it.

The library lies in unweave's cache folder under a name made of everything it depends on: sources,
flags, compiler and processor. Set `UNWEAVE_NATIVE=0` to do without.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from pathlib import Path

from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.subject.cache import cache_folder

_HERE = Path(__file__).parent
_SOURCES = ("select.c", "bags.c", "by_latent.c", "update.c")
# Results must not depend on what a compiler dares to reorder: no -ffast-math.
_FLAGS = (
    *("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-shared", "-fPIC"),
)
# Processors with 512-bit vectors use them only when told to; not every compiler knows the flag.
_OWN = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())
_log = logging.getLogger("unweave")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there is no compiler or they are not wanted."""
    if os.environ.get("UNWEAVE_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        _log.info("No C compiler found: kernels run as torch operations")
        return None
    path = cache_folder() / "native" / f"kernels-{_key(compiler)}.so"
    try:
        if not path.is_file():
            with new_file(path) as partial:
                compile_to(partial, compiler, *_OWN)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError, UserError) as error:
        _log.warning("Kernels could not be compiled and run as torch operations: %s", error)
        return None


def compile_to(path: Path, compiler: str, *machine: tuple[str, ...]) -> None:
    """Compile the kernels with the first of several flags for a machine that work.

    Raises:
        SubprocessError: none does; what the compiler said last.
    """
    sources = [str(_HERE / name) for name in _SOURCES]
    said = b""
    for flags in machine:
        call = [compiler, *_FLAGS, *flags, *sources, "-lm", "-o", str(path)]
        done = subprocess.run(call, capture_output=True, timeout=120)
        if done.returncode == 0:
            return
        said = done.stderr
    raise subprocess.SubprocessError(said.decode(errors="replace").strip()[:500])


def _key(compiler: str) -> str:
    parts = [file.read_bytes() for file in sorted(_HERE.iterdir()) if file.suffix in _KINDS]
    parts += [" ".join(_FLAGS).encode(), compiler.encode(), _version(compiler), _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


_KINDS = {".c", ".h", ".inc"}


def _version(compiler: str) -> bytes:
    stat = Path(compiler).resolve().stat()
    return f"{stat.st_size} {stat.st_mtime_ns}".encode()


def _processor() -> bytes:
    """What the processor can do: a cache folder may be shared by different machines."""
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_bytes().splitlines():
            if line.startswith((b"flags", b"Features")):
                return line
    return f"{platform.machine()} {platform.processor()}".encode()
