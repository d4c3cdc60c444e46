"""A job small enough to be done many times, on the embedded model."""

from pathlib import Path

import pytest

from unweave.pipeline import DecompileSettings, decompile

SMALL = """
text = "heldout"
tokens = 9000
context = 64
latents = 1
k_mlp = 4
k_attention = 4
k_query = 4
k_key = 4
checkpoint_seconds = 0

[harvest]
window_tokens = 2048

[local]
batch = 256
lr = 5e-3

[joint]
tokens = 3072
micro_rows = 4
lr = 1e-3

[evidence]
most_tokens = 2048

[edges]
features_per_part = 32
tokens = 512

[measure]
tokens = 512
single_tokens = 256
samples = 2
sample_tokens = 8
"""
"""Settings of the small job, as a user would write them."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings as a file."""
    path = tmp_path_factory.mktemp("settings") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def settings() -> DecompileSettings:
    """The settings as an object."""
    import tomllib

    return DecompileSettings.model_validate(tomllib.loads(SMALL))


@pytest.fixture(scope="session")
def artifact(settings: DecompileSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job, done in one go by two workers."""
    out = tmp_path_factory.mktemp("whole") / "wren"
    threaded = settings.model_copy(update={"threads": 2})
    return decompile("wren", settings=threaded, out=out)
