"""Memory that is freed stays with the process once it was asked to keep it."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys, threading
from unweave.subject.memory import keep_freed_memory
size = 40_000_000  # above what glibc would learn to keep by itself
told = keep_freed_memory() if sys.argv[1] == "keep" else False
def work():
    for _ in range(10):
        b"x" * size
def run():
    thread = threading.Thread(target=work)
    thread.start() if sys.argv[2] == "thread" else work()
    if thread.ident:
        thread.join()
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(int(told), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, where: str) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", COUNT, mode, where], capture_output=True, text=True, check=True
    )
    told, count = map(int, done.stdout.split())
    return bool(told), count


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator only")
@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_comes_back_without_page_faults(where):
    told, kept = faults("keep", where)
    if not told:
        pytest.skip("this C library cannot be told")
    _, usual = faults("usual", where)
    assert usual > 1000
    assert kept * 10 < usual
