"""What an artifact says of itself, and when two are the same."""

import json
import subprocess
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from tiny_artifact import LATENTS, PARTS, build, scores

from unweave import __version__
from unweave.artifact import layout
from unweave.artifact.atomic import write_json, write_text
from unweave.artifact.folder import open_artifact
from unweave.artifact.hashing import sha256_of_file
from unweave.artifact.identity import identity_of
from unweave.artifact.manifest import Provenance, read_manifest, rerecord, seal
from unweave.artifact.schema import FOLDER, schemas
from unweave.artifact.scores import Scores, read_scores, write_scores
from unweave.errors import UserError


def test_the_manifest_lists_every_file_with_its_hash(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    present = {p.relative_to(artifact).as_posix() for p in artifact.rglob("*") if p.is_file()}
    assert manifest.files.keys() == present - {layout.MANIFEST}
    for name, record in manifest.files.items():
        said = subprocess.run(["sha256sum", artifact / name], capture_output=True, text=True)
        assert said.stdout.split()[0] == record.sha256
        assert record.bytes == (artifact / name).stat().st_size
    assert manifest.code.version == __version__
    assert manifest.settings == {"k": 2, "nested": {"x": [1, 0.5]}}


def test_an_opened_artifact_gives_everything_back(artifact: Path) -> None:
    opened = open_artifact(artifact)
    assert opened.parts == PARTS
    assert opened.scores().splice.propagated.ce_increase.value == 0.5
    assert opened.weights("L0.mlp")["W_enc"].shape[0] == LATENTS
    digest = sha256_of_file(layout.weights_of(artifact, "L0.mlp"))
    assert str(opened.feature_id("L0.mlp", 3)) == f"L0.mlp/3@{digest[:6]}"
    assert opened.firings("L0.attn").n_tokens == opened.tokens().size
    assert opened.token_text()[3] == " word3"
    assert len(opened.features("L0.mlp")["count"]) == LATENTS
    assert list(opened.edges()["weight"]) == [1, -2, 3]
    with opened.descriptions() as store:
        assert len(store) == 2 * LATENTS
    with pytest.raises(UserError, match=r"has no part 'L9.mlp'"):
        opened.feature_id("L9.mlp", 0)


def test_two_runs_have_one_identity_though_their_clocks_differ(
    tmp_path: Path, provenance: Provenance
) -> None:
    sealed = []
    for name, seconds in (("a", 1.0), ("b", 99.0)):
        build(tmp_path / name, seconds=seconds)
        sealed.append(seal(tmp_path / name, provenance))
    first, second = sealed
    assert first.identity == second.identity
    clocked = {layout.SCORES, layout.METRICS, layout.REPORT}
    for path, record in first.files.items():
        assert (record == second.files[path]) == (path not in clocked)


@pytest.mark.parametrize(
    "path", [layout.SCORES, layout.METRICS, layout.SAMPLES, layout.TOKENS, layout.DESCRIPTIONS]
)
def test_any_other_change_changes_the_identity(artifact: Path, path: str) -> None:
    before = read_manifest(artifact).identity
    if path == layout.SCORES:
        changed = json.loads((artifact / path).read_text())
        changed["splice"]["propagated"]["kl"]["value"] = 0.51
        write_json(artifact / path, changed)
    elif path == layout.METRICS:
        write_text(artifact / path, '{"step": 2}\n')
    else:
        content = bytearray((artifact / path).read_bytes())
        content[-1] ^= 1
        (artifact / path).write_bytes(bytes(content))
    assert rerecord(artifact, path).identity != before


def test_the_identity_is_as_written_down() -> None:
    # sha256 of '[["a","x"],["b","y"]]', by another program.
    digest = "9d9ebd0f2c2a5d6a"
    listed = [("b", "y"), (layout.REPORT, "z"), ("a", "x"), (layout.MANIFEST, "z")]
    said = subprocess.run(
        ["sha256sum"], input='[["a","x"],["b","y"]]', capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert identity_of(Path("/nowhere"), listed) == said != digest


def test_the_report_may_be_written_anew(artifact: Path) -> None:
    before = read_manifest(artifact)
    write_text(artifact / layout.REPORT, "another")
    after = rerecord(artifact, layout.REPORT)
    assert after.identity == before.identity
    assert after.files[layout.REPORT] != before.files[layout.REPORT]
    assert read_manifest(artifact) == after


def test_sealing_sweeps_what_a_killed_run_left(artifact: Path, provenance: Provenance) -> None:
    left = artifact / "graph" / ".edges.parquet.999999999-0123abcd.partial"
    left.write_bytes(b"half")
    assert left.relative_to(artifact).as_posix() not in seal(artifact, provenance).files
    assert not left.exists()


def test_a_link_is_refused(artifact: Path, provenance: Provenance) -> None:
    (artifact / "link").symlink_to(artifact / layout.SCORES)
    with pytest.raises(UserError, match=r"link is a link"):
        seal(artifact, provenance)


def test_what_is_no_artifact_is_said(tmp_path: Path, artifact: Path) -> None:
    with pytest.raises(UserError, match="No folder"):
        read_manifest(tmp_path / "absent")
    with pytest.raises(UserError, match="it is no artifact, or its job is unfinished"):
        read_manifest(tmp_path)
    content = json.loads((artifact / layout.MANIFEST).read_text())
    for damage, said in (
        ({"format": 2}, "at format: Input should be 1"),
        ({"surprise": 1}, "at surprise: Extra inputs"),
        ({"seed": "0"}, "at seed"),
    ):
        write_json(artifact / layout.MANIFEST, {**content, **damage})
        with pytest.raises(UserError, match=rf"manifest.json does not fit its schema {said}"):
            read_manifest(artifact)
    (artifact / layout.MANIFEST).write_text("{" * 100_000)
    with pytest.raises(UserError, match=r"manifest.json is no readable JSON"):
        read_manifest(artifact)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"controls": {}}, "mean_ablation"),
        ({"ce_original": {"value": 1, "low": 2, "high": 1}}, "exceeds its high end"),
        ({"ce_original": {"value": 1, "low": 2}}, "both ends or none"),
        ({"ce_original": 1.0}, "at ce_original"),
        ({"ce_original": {"value": float("nan")}}, "at ce_original.value"),
        ({"tokens": -1}, "at tokens"),
    ],
)
def test_scores_that_do_not_fit_are_refused(
    artifact: Path, damage: dict[str, object], said: str
) -> None:
    (artifact / layout.SCORES).write_text(json.dumps({**scores(), **damage}))
    with pytest.raises(UserError, match=rf"scores.json does not fit .*{said}"):
        read_scores(artifact / layout.SCORES)


def test_scores_come_back_as_written(tmp_path: Path) -> None:
    written = Scores.model_validate(scores())
    write_scores(tmp_path / "scores.json", written)
    assert read_scores(tmp_path / "scores.json") == written
    with pytest.raises(UserError, match="No file"):
        read_scores(tmp_path / "absent.json")


def test_the_schemas_are_current() -> None:
    committed = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    assert committed == schemas(), "run python -m unweave.artifact.schema"


@pytest.mark.parametrize("name", ["manifest", "scores"])
def test_the_schemas_accept_what_is_written_and_refuse_the_rest(artifact: Path, name: str) -> None:
    schema = json.loads(schemas()[f"{name}.schema.json"])
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads((artifact / f"{name}.json").read_text())
    jsonschema.validate(content, schema)
    for key in content:
        less = {other: value for other, value in content.items() if other != key}
        if key in schema["required"]:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(less, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "surprise": 1}, schema)


def test_features_of_another_form_are_refused(artifact: Path) -> None:
    from unweave.artifact.features import load_features
    from unweave.artifact.tensors import load_tensors, save_tensors

    path = layout.features_of(artifact, "L0.mlp")
    good = load_tensors(path)
    for damage, said in (
        ({"example_position": np.zeros(3, np.int64)}, "lacks the tensor 'example_position'"),
        ({"count": np.zeros(LATENTS, np.int32)}, "'count' is torch.int32"),
        ({"extra": np.zeros(1)}, "'extra' that does not belong"),
    ):
        save_tensors(path, {**good, **damage})
        with pytest.raises(UserError, match=said):
            load_features(path)
