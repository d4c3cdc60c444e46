"""Cut off at any point and started again, the job ends in the same artifact, hash for hash."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unweave.artifact.layout import REPORT, SCORES
from unweave.artifact.manifest import read_manifest
from unweave.pipeline.job import unfinished

# A background shell hands on that SIGINT is to be ignored; a person's terminal does not.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from unweave.cli import main
main(sys.argv[1:])
"""


def start(config: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, "decompile", "wren", "--threads", "1"]
    command += ["--config", str(config), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cut(process: subprocess.Popen, reached: Callable[[], bool], how: signal.Signals) -> str:
    """Send the signal as soon as the point is reached; the process must not have ended before."""
    limit = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "the point was never reached"
        time.sleep(0.005)
    process.send_signal(how)
    return process.communicate(timeout=120)[1]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_in_the_same_artifact(artifact, small, tmp_path):
    out = tmp_path / "wren"
    work = unfinished(out)

    def done(stage: str) -> Callable[[], bool]:
        return (work / "done" / f"{stage}.json").is_file

    def checkpoint(stage: str) -> Callable[[], bool]:
        return lambda: any((work / stage).glob("*/state.json"))

    process = start(small, out)
    said = cut(process, done("text"), signal.SIGINT)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert not out.exists()
    for point in (
        checkpoint("local"),
        checkpoint("joint"),
        done("joint"),
        done("firings"),
        done("describe-neurons"),
        done("splice"),
    ):
        process = start(small, out)
        cut(process, point, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert not out.exists()
    process = start(small, out)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said

    found, wanted = read_manifest(out), read_manifest(artifact)
    assert found.identity == wanted.identity
    readings = {SCORES, REPORT}
    assert {name: file.sha256 for name, file in found.files.items() if name not in readings} == {
        name: file.sha256 for name, file in wanted.files.items() if name not in readings
    }
    assert not work.exists()


def test_an_identity_is_not_the_same_for_everything(artifact):
    manifest = read_manifest(artifact)
    scores = json.loads((artifact / SCORES).read_text())
    assert manifest.files[SCORES].sha256 != manifest.identity
    assert scores["seconds"] > 0
