"""Dictionaries, a whole artifact's parts and baselines on one text at one place, once each."""

import json
from pathlib import Path

import pytest
import torch
from tiny_subject import bump

from unweave.cli.pareto import pareto as command
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.errors import UserError
from unweave.pipeline.pareto import ParetoSettings, pareto
from unweave.pipeline.pareto_sources import identity, read_source
from unweave.validate.rivals.families import RivalSettings

SITE = "blocks.3.resid_post"
SMALL = {
    "subject": "wren", "text": "heldout", "tokens": 6000, "context": 32, "explain_rows": 24,
    "heldout_rows": 8, "splice_rows": 4, "choosing_rows": 2, "baselines": ("pca", "clusters"),
    "rivals": RivalSettings(k=(2, 16), clusters=(8,), random_per_dimension=1),
}  # fmt: skip


def exact(site: str = SITE, width: int = 128) -> Dictionary:
    """A dictionary that writes exactly what it reads: both ways along every coordinate."""
    found = Dictionary(autoencoder(site, width, 2 * width, TopK(k=width)))
    eye = torch.eye(width)
    with torch.no_grad():
        found.W_enc.copy_(torch.cat([eye, -eye]))
        found.W_dec.copy_(torch.cat([eye, -eye]))
    return found.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_dictionary(exact(), folder / "dictionaries" / "exact-k128")
    save_dictionary(bump(exact(), 0.3), folder / "dictionaries" / "spoiled-k128")
    return folder


@pytest.fixture(scope="module")
def compared(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pareto([runs], ParetoSettings(**SMALL), out=tmp_path_factory.mktemp("out"))


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def test_all_stand_on_one_plot_with_the_truth_known(compared: Path) -> None:
    found = {m["name"]: m for m in read(compared, "measurements.json")["methods"]}
    assert set(found) == {
        "exact-k128", "spoiled-k128", "pca-k2", "pca-k16", "clusters-n8", "random-k2", "random-k16",
    }  # fmt: skip
    loss = {name: m["math_loss"]["value"] for name, m in found.items()}
    # What is exact loses only what rounding its strengths may.
    assert loss["exact-k128"] < 0.1
    assert loss["spoiled-k128"] > 10 * loss["exact-k128"]
    assert loss["pca-k2"] > loss["pca-k16"] > loss["exact-k128"]
    mathematical = read(compared, "fronts.json")["fronts"]["mathematical"]
    assert mathematical["front"][-1] == "exact-k128"
    assert "spoiled-k128" not in mathematical["front"]
    assert mathematical["reference_length"] == 128 * 7
    assert found["random-k2"]["kind"] == "control"
    assert not any(name.startswith("random") for name in mathematical["front"])


def test_pictures_are_whole_and_say_the_names(compared: Path) -> None:
    assert (compared / "fronts.png").read_bytes().startswith(b"\x89PNG")
    drawn = (compared / "fronts.svg").read_text()
    assert "</svg>" in drawn
    assert "exact" in drawn
    assert "<script" not in drawn


def test_what_is_measured_is_not_measured_again(
    runs: Path, compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (compared / "measurements.json").read_bytes()
    monkeypatch.setattr("unweave.pipeline.pareto.measure", lambda *_: pytest.fail("again"))
    pareto([runs], ParetoSettings(**SMALL), out=compared)
    assert (compared / "measurements.json").read_bytes() == before
    alone = pareto([compared / "measurements.json"], ParetoSettings(), out=compared / "alone")
    assert (alone / "measurements.json").read_bytes() == before
    assert read(alone, "fronts.json") == read(compared, "fronts.json")


def test_another_comparison_in_the_same_folder_is_refused(runs: Path, compared: Path) -> None:
    with pytest.raises(UserError, match="another task"):
        pareto([runs], ParetoSettings(**{**SMALL, "explain_rows": 16}), out=compared)


def test_the_table_marks_what_nothing_beats(
    compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(compared / "measurements.json", out=tmp_path / "shown")
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("exact-k128"))
    assert "*" in line
    assert "Hypervolume, mathematical" in shown
    spoiled = next(line for line in shown.splitlines() if line.startswith("spoiled"))
    assert "*" not in spoiled.split("dictionary")[1].split()[1]


def test_runs_that_no_plot_may_hold_together_are_refused_in_a_sentence(
    runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="Nothing to compare"):
        command(out=tmp_path)
    settings = ParetoSettings(**SMALL)
    with pytest.raises(UserError, match="there is no"):
        pareto([tmp_path / "nowhere"], settings, out=tmp_path / "o")
    with pytest.raises(UserError, match="give --subject"):
        pareto([runs], ParetoSettings(**{**SMALL, "subject": None}), out=tmp_path / "o")
    with pytest.raises(UserError, match="magic is no baseline"):
        pareto([runs], ParetoSettings(**{**SMALL, "baselines": ("magic",)}), out=tmp_path / "o")
    with pytest.raises(UserError, match="another --site"):
        pareto([runs], ParetoSettings(**{**SMALL, "site": "nowhere"}), out=tmp_path / "o")
    save_dictionary(exact("blocks.1.resid_post"), tmp_path / "two" / "early")
    with pytest.raises(UserError, match="one plot has one place"):
        pareto([runs, tmp_path / "two"], settings, out=tmp_path / "o")
    assert not (tmp_path / "o" / "fronts.json").exists()


def test_a_methods_identity_is_its_weights_and_its_place(runs: Path, tmp_path: Path) -> None:
    one, other = read_source(runs).methods
    assert identity(one) != identity(other)
    assert identity(one) == identity(read_source(runs).methods[0])
    assert read_source(runs / "dictionaries" / "exact-k128").methods[0].name == "exact-k128"
    reads = (Port(site="blocks.1.mlp.in", width=4),)
    writes = (Port(site="blocks.1.mlp.out", width=4),)
    spec = DictionarySpec(name="t", reads=reads, writes=writes, n_latents=8, activation=TopK(k=2))
    save_dictionary(Dictionary(spec), tmp_path / "t")
    assert read_source(tmp_path / "t").methods[0].kind == "transcoder"
