"""The job dies at one write after another and still ends in the same artifact, hash for hash."""

import json
import os
import subprocess
import sys
from pathlib import Path

from test_pipeline_families import text  # noqa: F401  (a fixture)

SCRIPT = Path(__file__).with_name("killed_at_writes.py")


def test_dying_at_any_write_changes_nothing(text, tmp_path):  # noqa: F811
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parents[1])])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), text, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    codes = found["codes"]
    assert codes[0] == codes[-1] == 0, done.stderr
    assert set(codes) == {0, 9}, done.stderr
    assert codes.count(9) >= 10
    assert found["identities"][0] == found["identities"][1]
    assert set(found["differing"]) <= {"scores.json", "report.html"}
    assert found["left"] == ["cut", "whole"]
