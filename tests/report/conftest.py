"""A written artifact and its page, made once."""

from pathlib import Path

import pytest
from report_artifact import write_artifact

from unweave.report import write_report


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small artifact with planted values and its report."""
    folder = write_artifact(tmp_path_factory.mktemp("artifact"))
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def page(artifact: Path) -> str:
    """The report's source."""
    return (artifact / "report.html").read_text(encoding="utf-8")
