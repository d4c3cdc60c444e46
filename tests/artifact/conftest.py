"""A sealed tiny artifact for every test that wants one."""

import shutil
from pathlib import Path

import pytest
from tiny_artifact import PARTS, SUBJECT, TEXT, build

from unweave.artifact.manifest import Provenance, seal


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance(
        subject=SUBJECT, text=TEXT, settings={"k": 2, "nested": {"x": [1, 0.5]}}, seed=0,
        threads=1, dtype="float32", parts=PARTS, explain_rows=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def _built(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Path:
    folder = tmp_path_factory.mktemp("built") / "artifact"
    build(folder)
    seal(folder, provenance)
    return folder


@pytest.fixture
def artifact(tmp_path: Path, _built: Path) -> Path:
    """A sealed artifact to damage; `check` finds nothing in it."""
    return shutil.copytree(_built, tmp_path / "artifact")
