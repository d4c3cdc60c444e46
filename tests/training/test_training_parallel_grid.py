"""Four processes as a grid of two by two: rows and latents shared out at once."""

from pathlib import Path

import pytest
from parallel_steps import DEALT_OUT, by_one
from test_training_parallel import apart, equal, found, launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    codes, said = launch(str(folder), *(f"both:{kind}" for kind in DEALT_OUT), processes=4)
    assert codes == [0, 0, 0, 0], said
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", DEALT_OUT)
def test_a_grid_makes_what_one_makes(folder: Path, kind: str) -> None:
    _, state = found(folder, f"both:{kind}")
    assert apart(state, by_one(kind)[1]) < 1e-9
    for rank in (1, 2, 3):
        assert equal(state, found(folder, f"both:{kind}", rank=rank)[1])
