"""The whole path: what the artifact holds, and what it refuses to start on."""

import math

import pytest

from unweave.artifact.check import check
from unweave.artifact.folder import open_artifact
from unweave.dictionaries.part_names import KINDS
from unweave.errors import UserError
from unweave.pipeline import decompile
from unweave.pipeline.job import unfinished


def test_the_artifact_keeps_its_own_rules(artifact):
    assert check(artifact).violations == []
    assert not unfinished(artifact).exists()


def test_its_numbers_are_those_of_a_decompilation(artifact):
    scores = open_artifact(artifact).scores()
    splice, controls = scores.splice, scores.controls
    assert 0 < splice.single.ce_increase.value < splice.propagated.ce_increase.value
    assert splice.propagated.ce_increase.value < controls["mean_ablation"].ce_increase.value
    assert splice.propagated.ce_increase.value < controls["random_dictionary"].ce_increase.value
    assert set(scores.baselines) == {"neurons", "pca"}
    assert scores.semantic.auroc_mean.value > scores.semantic.shuffled.auroc_mean.value + 0.1
    assert scores.semantic.shuffled.auroc_mean.value == pytest.approx(0.5, abs=0.06)
    assert 0 < scores.active_features_per_token <= 20 * 4
    assert [part.part for part in scores.parts][:4] == [f"L0.{kind}" for kind in KINDS]
    mean = sum(part.single.ce_increase.value for part in scores.parts) / 20
    assert splice.single.ce_increase.value == pytest.approx(mean, abs=1e-9)
    assert scores.four_numbers.math_accuracy.value == splice.propagated.ce_increase.value
    assert 1.2 < scores.ce_original.value < 3.5  # wren, on the text held out from it


def test_the_manifest_says_what_it_was_made_from(artifact, settings):
    manifest = open_artifact(artifact).manifest
    assert manifest.settings["tokens"] == settings.tokens
    assert manifest.settings["joint"]["lr"] == 1e-3
    assert manifest.subject.name == "wren"
    assert manifest.text.name == "heldout"
    assert len(manifest.parts) == 20


def test_everything_is_there_to_look_at(artifact):
    opened = open_artifact(artifact)
    with opened.descriptions() as store:
        assert len(store) > 100
    edges = opened.edges()
    assert {"token/", "logit/"} <= {
        name[:6] for name in [*edges["source"][:5000], *edges["target"][-200:]]
    } | {name[:6] for name in edges["source"]}
    assert (artifact / "report.html").stat().st_size > 50_000
    assert all(math.isfinite(weight) for weight in edges["weight"])
    assert (artifact / "metrics.jsonl").read_text().count("\n") > 10


def test_the_same_request_again_is_done_already(artifact, settings):
    before = (artifact / "manifest.json").read_bytes()
    assert decompile("wren", settings=settings, out=artifact) == artifact
    assert (artifact / "manifest.json").read_bytes() == before


def test_another_request_does_not_overwrite_an_artifact(artifact, settings):
    other = settings.model_copy(update={"seed": 5})
    with pytest.raises(UserError, match="another artifact already"):
        decompile("wren", settings=other, out=artifact)


def test_a_folder_with_something_in_it_is_left_alone(settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="something else already"):
        decompile("wren", settings=settings, out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_unfinished_work_of_other_settings_is_named_not_mixed(settings, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_args, **_kwargs):
        raise Stopped

    monkeypatch.setattr("unweave.pipeline.fitting.fit_parts", stop)
    out = tmp_path / "wren"
    with pytest.raises(Stopped):
        decompile("wren", settings=settings, out=out)
    assert not out.exists()
    with pytest.raises(UserError, match=r"settings\.seed"):
        decompile("wren", settings=settings.model_copy(update={"seed": 5}), out=out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "no/such/file.txt"}, "no/such/file.txt"),
        ({"context": 4096}, "4096"),
        ({"tokens": 70}, "70 tokens"),
    ],
)
def test_what_cannot_be_read_leaves_nothing_at_out(settings, tmp_path, changes, words):
    out = tmp_path / "wren"
    with pytest.raises(UserError, match=words):
        decompile("wren", settings=settings.model_copy(update=changes), out=out)
    assert not out.exists()
