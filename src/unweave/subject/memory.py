"""Memory that is freed and asked for again pass after pass, kept instead of handed back."""

import ctypes
import os
import sys

_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what this process frees; whether it could be told.

    A pass over a network allocates and frees hundreds of megabytes. By default each large block
    is handed back to the system and comes back as fresh pages that must be zeroed one by one:
    220,000 page faults and a third of the time in a pass of SmolLM2-135M over 2,048 tokens
    (studies/harvest). Threads share one arena, as each one's own would be handed back all the same,
    and torch asks for huge pages, unless the environment says otherwise; both hold only when this
    is called before threads and large tensors are made.
    For a process that works and ends; it holds for the whole process and cannot be undone.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first large tensor
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(
        mallopt(_ARENA_MAX, 1)
        and mallopt(_MMAP_THRESHOLD, 1 << 30)
        and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    )
