"""The conformance test finds each kind of damage, names it, and finds nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_artifact import LATENTS

from unweave.artifact import layout
from unweave.artifact.arrays import save_array
from unweave.artifact.atomic import write_json, write_text
from unweave.artifact.check import check
from unweave.artifact.descriptions import Description, Descriptions, write_descriptions
from unweave.artifact.feature_id import FeatureId
from unweave.artifact.manifest import Provenance, read_manifest, seal
from unweave.artifact.tables import read_table, write_table
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.errors import UserError

Damage = Callable[[Path], object]


def test_a_good_artifact_has_no_faults(artifact: Path) -> None:
    files = sum(path.is_file() for path in artifact.rglob("*")) - 1
    assert check(artifact) == (files, [])


def test_without_a_manifest_there_is_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is no artifact"):
        check(tmp_path)


def _flip(path: str) -> Damage:
    def flip(folder: Path) -> None:
        content = bytearray((folder / path).read_bytes())
        content[len(content) // 2] ^= 0x10
        (folder / path).write_bytes(bytes(content))

    return flip


def _manifest(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        content = json.loads((folder / layout.MANIFEST).read_text())
        write_json(folder / layout.MANIFEST, {**content, **changes})

    return change


FROM_OUTSIDE: dict[str, tuple[Damage, list[str]]] = {
    "a changed file": (
        _flip(layout.REPORT),
        [f"{layout.REPORT} has been changed: its SHA-256 is not the manifest's"],
    ),
    "a longer file": (
        lambda folder: write_text(folder / layout.REPORT, "x" * 1000),
        [f"{layout.REPORT} has 1,000 bytes where the manifest says"],
    ),
    "an unlisted file": (
        lambda folder: write_text(folder / "graph" / "notes", "x"),
        ["graph/notes lies in the folder but not in the manifest"],
    ),
    "a missing file": (
        lambda folder: (folder / layout.SAMPLES).unlink(),
        [f"{layout.SAMPLES} is in the manifest but not in the folder"],
    ),
    "a link": (
        lambda folder: (folder / "link").symlink_to("/etc/passwd"),
        ["link is a link"],
    ),
    "another identity": (
        _manifest(identity="0" * 64),
        ["the manifest's identity is not that of the files it lists"],
    ),
    "a manifest of another form": (_manifest(seed=None), ["manifest.json does not fit its schema"]),
    "explaining rows beyond the text": (
        _manifest(explain_rows=99),
        ["the manifest gives 99 rows for explaining where firings/tokens.npy has 5"],
    ),
}


@pytest.mark.parametrize("kind", FROM_OUTSIDE)
def test_damage_from_outside_is_found(artifact: Path, kind: str) -> None:
    damage, expected = FROM_OUTSIDE[kind]
    damage(artifact)
    assert_faults(artifact, expected)


def _edit_json(path: str, change: Callable[[object], object]) -> Damage:
    def edit(folder: Path) -> None:
        write_json(folder / path, change(json.loads((folder / path).read_text())))

    return edit


def _spec(**changes: object) -> Damage:
    return _edit_json("dictionaries/L0.mlp/spec.json", lambda spec: {**spec, **changes})


def _tensor(path: str, name: str, value: torch.Tensor) -> Damage:
    def edit(folder: Path) -> None:
        save_tensors(folder / path, {**load_tensors(folder / path), name: value})

    return edit


def _edge(column: str, value: object) -> Damage:
    def edit(folder: Path) -> None:
        table = read_table(folder / layout.EDGES_TABLE)
        table[column] = np.array([value, *table[column][1:]], dtype=table[column].dtype)
        write_table(folder / layout.EDGES_TABLE, table)

    return edit


def _described(feature: FeatureId) -> Damage:
    def edit(folder: Path) -> None:
        with Descriptions(folder / layout.DESCRIPTIONS) as store:
            rows = list(store)
        rows.append(Description(feature, "x", {}, {}, 1.0))
        write_descriptions(folder / layout.DESCRIPTIONS, rows)

    return edit


def _tokens(value: int) -> Damage:
    return lambda folder: save_array(folder / layout.TOKENS, np.full((5, 8), value, np.int32))


def _cut(path: str) -> Damage:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-3])


WEIGHTS, FEATURES = "dictionaries/L0.mlp/weights.safetensors", "features/L0.mlp.safetensors"
WITHIN: dict[str, tuple[Damage, list[str]]] = {
    "a spec of more latents": (
        _spec(n_latents=7),
        ["W_enc has shape (6, 4)", "W_dec has shape (6, 4)", "firings/L0.mlp covers 6 latents",
         "lists 6 latents where spec.json has 7"],
    ),
    "a spec of another width": (_spec(d_out=5), ["W_dec has shape (6, 4)"]),
    "a spec of another part": (_spec(name="L9.mlp"), ["calls itself 'L9.mlp'"]),
    "a spec that is none": (_spec(n_latents="6"), ["spec.json does not fit its schema at n_lat"]),
    "weights with NaN": (
        _tensor(WEIGHTS, "b_enc", torch.full((LATENTS,), torch.nan)),
        ["tensor 'b_enc' holds 6 values that are NaN", *["belongs to other weights"] * 9],
    ),
    "truncated features": (_cut(FEATURES), ["L0.mlp.safetensors (3,"]),
    "features of the wrong type": (
        _tensor(FEATURES, "count", torch.zeros(LATENTS)), ["'count' is torch.float32"],
    ),
    "an example outside the text": (
        _tensor(FEATURES, "example_position", torch.full((LATENTS, 3), 40)),
        ["points at examples outside the text"],
    ),
    "tokens outside the vocabulary": (_tokens(11), ["tokens outside the vocabulary of 11"]),
    "another text than the firings'": (
        lambda folder: save_array(folder / layout.TOKENS, np.zeros((4, 8), np.int32)),
        ["firings/L0.attn covers 40 tokens where the text has 32", "firings/L0.mlp covers 40"],
    ),
    "firings out of order": (
        lambda folder: save_array(
            folder / "firings/L0.mlp/token.npy",
            np.load(folder / "firings/L0.mlp/token.npy")[::-1],
        ),
        ["firings/L0.mlp: the order by latent is not that of the order by token"],
    ),
    "a missing array of firings": (
        lambda folder: (folder / "firings/L0.mlp/value.npy").unlink(),
        ["firings/L0.mlp/value.npy belongs to every artifact"],
    ),
    "too few words": (
        _edit_json(layout.TOKEN_TEXT, lambda words: words[1:]), ["has 10 entries for 11 tokens"],
    ),
    "words that are none": (
        _edit_json(layout.TOKEN_TEXT, lambda words: [1, *words[1:]]), ["is no list of strings"],
    ),
    "an edge from a token outside": (_edge("source", "token/11"), ["token/11 names no token"]),
    "an edge to a feature outside": (_edge("target", "L0.mlp/6@000000"), ["other weights"]),
    "an edge from nowhere": (_edge("source", "somewhere"), ["'somewhere' is no feature id"]),
    "an edge without weight": (_edge("weight", np.nan), ["weight holds NaN"]),
    "a description of another part": (
        _described(FeatureId("L5.mlp", 0, "000000")),
        ["descriptions.sqlite: L5.mlp/0@000000 names a part that the artifact has not"],
    ),
    "a damaged store": (_flip(layout.DESCRIPTIONS), ["descriptions.sqlite"]),
    "scores of another subject": (
        _edit_json(layout.SCORES, lambda s: {**s, "subject": {**s["subject"], "name": "other"}}),
        ["scores.json is about another subject or text"],
    ),
    "scores of fewer parts": (
        _edit_json(layout.SCORES, lambda s: {**s, "parts": s["parts"][:1]}),
        ["scores.json lists other parts"],
    ),
    "scores without a splice": (
        _edit_json(layout.SCORES, lambda s: {**s, "splice": {}}),
        ["scores.json does not fit its schema at splice.clean: Field required"],
    ),
    "samples of another form": (
        _edit_json(layout.SAMPLES, lambda samples: [{"prompt": 1}]),
        ["samples.json does not fit its schema at prompt"],
    ),
    "metrics that are no JSON": (
        lambda folder: write_text(folder / layout.METRICS, '{"a": 1}\nnot json\n'),
        ["metrics.jsonl, line 2: no JSON"],
    ),
    "no report": (
        lambda folder: (folder / layout.REPORT).unlink(),
        ["report.html belongs to every artifact but is not in the manifest"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WITHIN)
def test_disagreement_within_is_found_though_every_hash_is_right(
    artifact: Path, provenance: Provenance, kind: str
) -> None:
    damage, expected = WITHIN[kind]
    damage(artifact)
    if kind != "metrics that are no JSON":
        seal(artifact, provenance)
    faults = check(artifact).violations
    unexplained = [fault for fault in faults if not any(said in fault for said in expected)]
    missing = [said for said in expected if not any(said in fault for fault in faults)]
    assert not missing, faults
    if kind not in ("a damaged store", "metrics that are no JSON"):
        assert not unexplained


def test_a_feature_beyond_its_part_is_found(artifact: Path, provenance: Provenance) -> None:
    digest = read_manifest(artifact).files[WEIGHTS].sha256[:6]
    _described(FeatureId("L0.mlp", LATENTS, digest))(artifact)
    seal(artifact, provenance)
    expected = f"L0.mlp/6@{digest} names a latent beyond the 6 of L0.mlp"
    assert_faults(artifact, [f"descriptions.sqlite: {expected}"])


def assert_faults(folder: Path, expected: list[str]) -> None:
    faults = check(folder).violations
    assert len(faults) == len(expected), faults
    for fault, said in zip(faults, expected, strict=True):
        assert said in fault
