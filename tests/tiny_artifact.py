"""A tiny artifact that conforms in everything, for tests to damage."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from unweave.artifact import layout
from unweave.artifact.arrays import save_array
from unweave.artifact.atomic import write_json, write_json_lines, write_text
from unweave.artifact.descriptions import Description, write_descriptions
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.features import feature_forms
from unweave.artifact.firings import write_firings
from unweave.artifact.manifest import Provenance, seal
from unweave.artifact.records import SubjectRecord, TextRecord
from unweave.artifact.scores import Scores, write_scores
from unweave.artifact.tables import write_table
from unweave.artifact.tensors import save_tensors

PARTS = ["L0.attn", "L0.mlp"]
LATENTS, WIDTH, VOCABULARY, ROWS, CONTEXT = 6, 4, 11, 5, 8

SUBJECT = SubjectRecord(
    name="tiny", fingerprint="0" * 64, family="llama", n_layers=1, d_model=WIDTH, d_mlp=8,
    n_heads=2, n_kv_heads=1, d_head=2, vocab_size=VOCABULARY, parameters=100,
)  # fmt: skip
TEXT = TextRecord(name="self", sha256="1" * 64, tokens=400, heldout_tokens=40, context=CONTEXT)


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance(
        subject=SUBJECT, text=TEXT, settings={"k": 2, "nested": {"x": [1, 0.5]}}, seed=0,
        threads=1, dtype="float32", parts=PARTS, explain_rows=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def built_artifact(tmp_path_factory: pytest.TempPathFactory, provenance: Provenance) -> Path:
    folder = tmp_path_factory.mktemp("built") / "artifact"
    build(folder)
    seal(folder, provenance)
    return folder


@pytest.fixture
def artifact(tmp_path: Path, built_artifact: Path) -> Path:
    """A sealed artifact to damage; `check` finds nothing in it."""
    return shutil.copytree(built_artifact, tmp_path / "artifact")


def build(folder: Path, *, seconds: float = 12.5) -> None:
    """Write every file but the manifest; only the readings depend on `seconds`."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (ROWS, CONTEXT)).astype(np.int32)
    save_array(folder / layout.TOKENS, tokens)
    write_json(folder / layout.TOKEN_TEXT, [f" word{token}" for token in range(VOCABULARY)])
    for part in PARTS:
        _build_part(folder, part, random)
    digests = {part: short_hash(layout.weights_of(folder, part)) for part in PARTS}
    first, last = (str(FeatureId(part, 1, digests[part])) for part in PARTS)
    write_table(
        folder / layout.EDGES_TABLE,
        {
            "source": ["token/3", first, last],
            "target": [first, last, "logit/10"],
            "weight": np.array([1, -2, 3], np.float32),
            "kind": ["virtual"] * 3,
            "used": np.zeros(3, np.float32),
        },
    )
    said = [
        Description(FeatureId(part, latent, digests[part]), f"fires on word{latent}",
                    {"kind": "token", "token": latent}, {"auroc": 0.9}, 20.0)
        for part in PARTS for latent in range(LATENTS)
    ]  # fmt: skip
    write_descriptions(folder / layout.DESCRIPTIONS, said)
    write_scores(folder / layout.SCORES, Scores.model_validate(scores(seconds)))
    write_json(
        folder / layout.SAMPLES, [{"prompt": "One", "original": " day", "decompiled": " night"}]
    )
    write_json_lines(folder / layout.METRICS, [{"step": 1, "loss": 0.5, "seconds": seconds}])
    write_text(folder / layout.REPORT, f"<!doctype html><title>took {seconds} s</title>")


def _build_part(folder: Path, part: str, random: np.random.Generator) -> None:
    save_tensors(
        layout.weights_of(folder, part),
        {
            "W_enc": torch.ones(LATENTS, WIDTH) * len(part),
            "W_dec": torch.ones(LATENTS, WIDTH),
            "b_enc": torch.zeros(LATENTS),
        },
    )
    sites = {"input_site": "blocks.0.mlp.in", "output_site": "blocks.0.mlp.out"}
    spec = {"name": part, "n_latents": LATENTS, "d_in": WIDTH, "d_out": WIDTH, "k": 2, **sites}
    write_json(layout.spec_of(folder, part), spec)
    counts = np.full(ROWS * CONTEXT, 2)
    latent = np.concatenate([random.choice(LATENTS, 2, replace=False) for _ in counts])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    value = random.random(len(latent)).astype(np.float32) + 0.1
    write_firings(layout.firings_of(folder, part), latent, value, indptr, LATENTS)
    forms = feature_forms(LATENTS, 3)
    save_tensors(
        layout.features_of(folder, part),
        {name: torch.zeros(form.shape, dtype=form.dtype) for name, form in forms.items()},
    )


def scores(seconds: float = 12.5) -> dict[str, object]:
    """The content of a scores.json that fits."""
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    fidelity = {"ce_increase": one, "kl": one, "top1_agreement": one}
    names = ("math_accuracy", "math_length_bits", "semantic_accuracy", "semantic_length_bits")
    four = {name: {**one, "unit": "bits"} for name in names}
    detection = {"auroc_mean": one, "correlation_mean": {"value": 0.25}}
    part = {
        "site_in": "blocks.0.mlp.in", "site_out": "blocks.0.mlp.out", "n_latents": LATENTS,
        "l0": 2, "alive_fraction": 1, "fvu": 0.1, "fvu_robust": 0.2, "single": fidelity,
    }  # fmt: skip
    return {
        "subject": SUBJECT.model_dump(),
        "text": TEXT.model_dump(),
        "tokens": 400,
        "seconds": seconds,
        "peak_rss_bytes": int(1e9 + seconds),
        "threads": 1,
        "dtype": "float32",
        "ce_original": one,
        "splice": dict.fromkeys(("clean", "single", "propagated"), fidelity),
        "controls": {"mean_ablation": {"ce_increase": one}, "zeros": {"ce_increase": one}},
        "active_features_per_token": 4.0,
        "alive_fraction": 1.0,
        "four_numbers": four,
        "baselines": {"neurons": {**four, "splice": {"propagated": fidelity}}},
        "semantic": {**detection, "described": 12, "shuffled": detection},
        "parts": [{"part": name, **part} for name in PARTS],
        "stages": [{"name": "training", "seconds": seconds}],
    }
