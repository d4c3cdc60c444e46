"""Two artifacts side by side: what is the same is found, what changed is named."""

import shutil

import pytest
import torch
from tiny_artifact import LATENTS, PARTS, scores

from unweave.artifact import layout
from unweave.artifact.compare.compare import compare
from unweave.artifact.compare.matching import nearest_both_ways, shuffled_coordinates
from unweave.artifact.descriptions import Description, write_descriptions
from unweave.artifact.feature_id import FeatureId, short_hash
from unweave.artifact.features import load_features
from unweave.artifact.manifest import seal
from unweave.artifact.scores import Scores, write_scores
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.errors import UserError

PART = PARTS[1]
D = 48


def rewritten(folder, W_dec, words):
    """The part with these decoder rows, every feature alive, and these words for its features."""
    path = layout.weights_of(folder, PART)
    save_tensors(path, {**load_tensors(path), "W_dec": W_dec})
    table = layout.features_of(folder, PART)
    ones = {"count": torch.ones(LATENTS, dtype=torch.int64), "frequency": torch.ones(LATENTS),
            "mean_active": torch.arange(LATENTS, 0, -1).float()}  # fmt: skip
    save_tensors(table, {**load_features(table), **ones})
    digest = short_hash(path)
    said = [
        Description(FeatureId(PART, n, digest), text, {"kind": "token", "token": n}, {}, 1)
        for n, text in enumerate(words)
    ]
    write_descriptions(folder / layout.DESCRIPTIONS, said)


@pytest.fixture
def two(tmp_path, built_artifact, provenance):
    """Feature n of the first is feature (n + 1) % 6 of the second, but feature 5 is another."""
    rows = torch.nn.functional.normalize(
        torch.randn(LATENTS + 1, D, generator=torch.Generator().manual_seed(0)), dim=1
    )
    first, second = (shutil.copytree(built_artifact, tmp_path / name) for name in ("a", "b"))
    for folder in (first, second):
        (folder / layout.MANIFEST).unlink()
    rewritten(first, rows[:LATENTS], [f"word {n}" for n in range(LATENTS)])
    there = rows[[LATENTS, 0, 1, 2, 3, 4]] * 3
    rewritten(second, there, ["new", "word 0", "word 1", "other words", "word 3", "word 4"])
    seal(first, provenance)
    settings = {"k": 3, "nested": {"x": [1, 0.5]}}
    worse = scores()
    worse["splice"]["propagated"]["ce_increase"] = {"value": 0.8, "low": 0.7, "high": 0.9}
    write_scores(second / layout.SCORES, Scores.model_validate(worse))
    seal(second, provenance.model_copy(update={"settings": settings}))
    return first, second


def test_an_artifact_is_identical_to_its_copy(artifact, built_artifact):
    found = compare(built_artifact, artifact)
    assert found.identical
    assert found.same_subject
    assert not found.inputs
    assert not any(number.apart for number in found.numbers)


def test_what_changed_is_named_and_nothing_else(two):
    found = compare(*two)
    assert not found.identical
    assert [(c.name, c.before, c.after) for c in found.inputs] == [("settings.k", 2, 3)]
    apart = {number.name for number in found.numbers if number.apart}
    assert "propagated.ce_increase" in apart
    assert "control.mean_ablation" not in apart
    part = next(p for p in found.parts if p.part == PART)
    assert (part.alive_before, part.alive_after, part.kept) == (6, 6, 5)
    assert part.described_otherwise == 1
    assert part.kept_by_chance == 0
    assert [FeatureId.parse(one).latent for one in part.gone] == [5]
    assert [FeatureId.parse(one).latent for one in part.new] == [0]


def test_parts_that_cannot_be_compared_say_why(two):
    first, second = two
    other = next(p for p in compare(first, second).parts if p.part == PARTS[0])
    assert other.refused == "no feature of one of them ever fires"
    with pytest.raises(UserError, match=r"no manifest\.json"):
        compare(first, first / "dictionaries")


def test_matching_is_mutual_and_chance_finds_nothing():
    a = torch.randn(40, D, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    forth, cosine = nearest_both_ways(a, a[order])
    assert torch.equal(order[forth], torch.arange(40))
    assert torch.allclose(cosine, torch.ones(40), atol=1e-5)
    # Two rows that share their nearest: only one of them is matched.
    forth, _ = nearest_both_ways(torch.stack([a[0], a[0] + 0.1 * a[1]]), a[:1])
    assert forth.tolist() == [0, -1]
    _, other = nearest_both_ways(a, shuffled_coordinates(a, seed=0))
    assert other.max() < 0.9
