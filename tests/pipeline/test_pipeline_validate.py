"""`unweave validate`: numbers of dictionaries and networks, never without their controls."""

import json
from pathlib import Path

import pytest
import torch

from unweave.artifact.measurements import Measurements
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.pipeline.randomised import RandomisedSettings
from unweave.pipeline.validate import ValidateSettings, Validation, validate
from unweave.pipeline.validation_table import RANDOMISED, as_markdown, tabulated, value_of

SETTINGS = ValidateSettings(
    subject="wren", text="heldout", tokens=12_000, rows=24, heldout_rows=6, baselines=("pca",),
    randomised=RandomisedSettings(latents=128, k=8, steps=60, batch=256),
)  # fmt: skip


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both ways along every coordinate of the stream, the sixteen largest."""
    found = Dictionary(autoencoder("blocks.3.resid_post", 128, 256, TopK(k=16)))
    eye = torch.eye(128)
    with torch.no_grad():
        found.W_enc.copy_(torch.cat([eye, -eye]))
        found.W_dec.copy_(torch.cat([eye, -eye]))
    folder = tmp_path_factory.mktemp("made") / "largest"
    save_dictionary(found.eval(), folder)
    return folder


@pytest.fixture(scope="module")
def done(dictionary: Path, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    return validate(dictionary, SETTINGS, out=tmp_path_factory.mktemp("out") / "validation")


def test_the_dictionary_stands_beside_a_baseline_and_a_control(done: Validation):
    found = {method.name: method for method in done.found.methods}
    assert set(found) == {"largest", "pca-k16", "largest-random"}
    assert found["largest-random"].kind == "control"
    largest = found["largest"]
    assert largest.controls["semantic_share_shuffled"].value < 0 < largest.semantic_share.value
    assert 0 < largest.math_loss.value < largest.controls["loss_mean_ablation"].value
    assert found["pca-k16"].math_loss.value < largest.math_loss.value


def test_shuffled_networks_are_told_from_the_trained_one(done: Validation):
    trained, again, shuffled = done.randomised.methods
    assert (trained.kind, again.kind, shuffled.kind) == ("dictionary", "dictionary", "control")
    next_token = [value_of(m, "next_token") for m in (trained, again, shuffled)]
    assert next_token[0].low > 0.3
    assert next_token[1].low > 0.3
    assert next_token[0].value != next_token[1].value
    assert abs(next_token[2].value) < 0.15


def test_the_same_command_measures_nothing_again(done: Validation, dictionary: Path):
    files = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in done.folder.rglob("*/*.json")}
    again = validate(dictionary, SETTINGS, out=done.folder)
    assert again.found == done.found
    kept = [p for p in files if p.parent.name in ("methods", "randomised")]
    assert kept
    assert all(p.stat().st_mtime_ns == files[p][0] for p in kept)


def test_nothing_is_shown_without_its_controls(done: Validation):
    own = [method for method in done.found.methods if method.kind != "control"]
    bare = done.found.model_copy(update={"methods": own})
    for show in (tabulated, lambda found: as_markdown(found, done.randomised)):
        with pytest.raises(UserError, match="no controls"):
            show(bare)
    with pytest.raises(UserError, match="no controls"):
        as_markdown(done.found, done.randomised.model_copy(update={"methods": []}))
    naked = [m.model_copy(update={"controls": {}}) for m in done.found.methods]
    with pytest.raises(UserError, match="no controls"):
        tabulated(done.found.model_copy(update={"methods": naked}))
    record = json.loads(done.found.model_dump_json())
    record["methods"] = [m for m in record["methods"] if m["kind"] != "control"]
    with pytest.raises(ValueError, match="no method is a control"):
        Measurements.model_validate(record)


def test_names_cannot_break_the_table(done: Validation):
    first, *others = done.found.methods
    hostile = first.model_copy(update={"name": "a|b<script>\n# c"})
    said = as_markdown(
        done.found.model_copy(update={"methods": [hostile, *others]}), done.randomised
    )
    assert "<script" not in said.replace("\\<", "")
    assert "\n# c" not in said
    assert len(tabulated(done.randomised, RANDOMISED).lines) == 3


def test_an_out_of_another_validation_is_refused(done: Validation, dictionary: Path):
    with pytest.raises(UserError, match="another task"):
        validate(dictionary, SETTINGS.model_copy(update={"rows": 20}), out=done.folder)


def test_a_decompiled_network_whose_patterns_are_features_stands_beside_its_baselines(
    artifact: Path, tmp_path: Path
):
    settings = SETTINGS.model_copy(update={"tokens": 6_000, "rows": 8, "heldout_rows": 4})
    done = validate(artifact, settings, out=tmp_path / "validation")
    names = {method.name for method in done.found.methods}
    assert any(name.startswith("pca-") for name in names)
    assert len(names) == 3
