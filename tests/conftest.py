"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# As for mypy, an int will do where a float is asked for.
install_import_hook(
    "unweave", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of shared test data, or a skip that says why."""
    if not SHARED.is_dir():
        pytest.skip(f"shared test data is absent: no folder {SHARED}")
    return SHARED
