"""What is missing is said; what is needed or damaged is a clear error and leaves no page behind."""

import shutil
from pathlib import Path

import pytest
from report_artifact import Plan, write_artifact
from report_walk import Walk

from unweave.errors import UserError
from unweave.report import write_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "artifact", Plan(layers=1, latents=8, rows=10))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("graph", "This artifact holds no interaction graph."),
        ("samples.json", "This artifact holds no continuations."),
        ("features", "This artifact holds no tables of features."),
        ("descriptions.sqlite", "The descriptions were not scored."),
        ("firings/token_text.json", "⟨"),
    ],
)
def test_optional_parts_may_be_absent(folder: Path, lost: str, said: str) -> None:
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said in Walk(write_report(folder).read_text(encoding="utf-8")).text


@pytest.mark.parametrize("lost", ["manifest.json", "scores.json"])
def test_needed_files_are_named_when_absent(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(UserError, match=lost):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    "damaged",
    [
        "manifest.json",
        "scores.json",
        "samples.json",
        "graph/edges.parquet",
        "features/L0.mlp.safetensors",
        "firings/tokens.npy",
        "firings/L0.mlp/latent.npy",
        "descriptions.sqlite",
    ],
)
def test_damage_is_named_and_the_old_page_stays(folder: Path, damaged: str) -> None:
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    path = folder / damaged
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
        write_report(folder)
    assert (folder / "report.html").read_bytes() == before


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        write_report(tmp_path / "nowhere")
