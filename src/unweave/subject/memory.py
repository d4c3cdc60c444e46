"""Memory that is freed and asked for again pass after pass, kept instead of handed back."""

import ctypes
import sys

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what this process frees; whether it could be told.

    A pass over a network allocates and frees hundreds of megabytes. By default each large block
    is handed back to the system and comes back as fresh pages that must be zeroed one by one:
    200,000 page faults a pass and a tenth of the time, measured on SmolLM2-135M with 1,024 tokens.
    For a process that works and ends; it holds for the whole process and cannot be undone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))
