"""A policy held against an artifact: met where it is met, and each requirement can fail."""

import json

import pytest
from tiny_artifact import artifact, built_artifact, provenance, scores  # noqa: F401

from unweave.artifact import layout
from unweave.artifact.manifest import rerecord
from unweave.artifact.scores import Scores, write_scores
from unweave.report.compliance.judge import judge
from unweave.report.compliance.policy import Policy

LOOSE = Policy(min_held_out_tokens=40, attention_in_features=False, clean_code=False)


def good():
    """Scores that meet every requirement."""
    found = scores()
    small = {"value": 0.05, "low": 0.04, "high": 0.06}
    whole = {
        "ce_increase": small,
        "kl": small,
        "top1_agreement": {"value": 0.9, "low": 0.88, "high": 0.92},
    }
    found["splice"] = dict.fromkeys(("clean", "single", "propagated"), whole)
    large = {"value": 8.0, "low": 7.0, "high": 9.0}
    found["controls"] = {"mean_ablation": {"ce_increase": large}}
    found["four_numbers"]["math_accuracy"] = {**small, "unit": "nats/token"}
    baseline = {**found["four_numbers"], "math_accuracy": {**large, "unit": "nats/token"}}
    found["baselines"] = {"neurons": baseline}
    words = {"auroc_mean": {"value": 0.8, "low": 0.78, "high": 0.82}, "correlation_mean": small}
    chance = {"auroc_mean": {"value": 0.5, "low": 0.48, "high": 0.52}, "correlation_mean": small}
    found["semantic"] = {**words, "described": 12, "shuffled": chance}
    return found


def outcomes(folder, changed, policy=LOOSE):
    """Names of the requirements that are not met when scores are these."""
    write_scores(folder / layout.SCORES, Scores.model_validate(changed))
    rerecord(folder, layout.SCORES)
    return [r.name for r in judge(folder, policy).requirements if r.outcome != "met"]


def test_all_is_met_where_all_is_well(artifact):  # noqa: F811
    assert outcomes(artifact, good()) == []
    assert judge(artifact, LOOSE).complies


WORSE = {"value": 0.3, "low": 0.28, "high": 0.32}
STRADDLING = {"value": 0.82, "low": 0.75, "high": 0.9}
"""Better than asked, but not for certain."""


@pytest.mark.parametrize(
    ("path", "value", "fails"),
    [
        (
            ("splice", "propagated", "ce_increase"),
            {"value": 0.14, "low": 0.1, "high": 0.18},
            "loss increase at most",
        ),
        (("splice", "propagated", "ce_increase"), {"value": 0.14}, "loss increase at most"),
        (("controls", "mean_ablation", "ce_increase"), WORSE, "of what ablation costs"),
        (("splice", "propagated", "top1_agreement"), STRADDLING, "the same top token"),
        (("splice", "clean", "ce_increase"), {"value": 0.01, "low": 0, "high": 0.02}, "clean one"),
        (("controls", "random"), {"ce_increase": {"value": 0.05}}, "every control fails"),
        (("baselines",), {}, "every baseline"),
        (
            ("semantic", "auroc_mean"),
            {"value": 0.6, "low": 0.5, "high": 0.7},
            "descriptions detect",
        ),
        (("semantic", "shuffled", "auroc_mean"), {"value": 0.8}, "given to other features"),
        (("semantic", "described"), 3, "of live features described"),
        (("text", "heldout_tokens"), 39, "held-out tokens"),
    ],
)
def test_every_requirement_can_fail(artifact, path, value, fails):  # noqa: F811
    changed = json.loads(json.dumps(good()))
    inner = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert any(fails in name for name in outcomes(artifact, changed))


def test_patterns_code_and_files_can_fail_too(artifact):  # noqa: F811
    strict = LOOSE.model_copy(update={"attention_in_features": True})
    assert outcomes(artifact, good(), strict) == ["every block's parts are sparse, patterns too"]
    (artifact / layout.SAMPLES).write_text("[]")
    assert outcomes(artifact, good()) == ["the folder is what its manifest says"]
