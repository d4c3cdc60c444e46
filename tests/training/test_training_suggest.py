"""Suggestions: what is promised is what a real run gives, and budgets and goals are kept."""

import math

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.errors import UserError
from unweave.training.laws.measured import Measured, measured
from unweave.training.laws.spliced import Relation, Spliced, loss, relation
from unweave.training.suggest import Suggestion, SuggestSettings, suggest
from unweave.training.trial import Trial, run_trials
from unweave.validate.worlds.features import PlantedSettings, planted_world

TOKENS = 16_384
LIMIT = SuggestSettings(k=4, flops=1e11, probe=True)


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    """A world that the study has not seen: other directions, frequencies and strengths."""
    world = planted_world(
        PlantedSettings(
            d=64, n_features=200, mean_active=4, firing="zipf", zipf_exponent=0.5,
            magnitudes="lognormal", noise_share=0.05,
        ),
        seed=77,
    )  # fmt: skip
    return world.draw(10_240, seed=78)[0]


@pytest.fixture(scope="module")
def sharp(vectors: torch.Tensor) -> Suggestion:
    """A suggestion with a probe, on all but the last vectors."""
    return suggest(vectors[:8192], tokens=TOKENS, settings=LIMIT)


def test_a_real_run_lands_within_the_interval_promised(
    vectors: torch.Tensor, sharp: Suggestion
) -> None:
    train, heldout, found = vectors[:8192], vectors[8192:], sharp
    assert found.flops <= 1e11
    assert len(found.probe) == 3
    (outcome,) = run_trials([found.trial], train, heldout)
    assert found.fvu.low <= outcome.fvu <= found.fvu.high
    assert found.fvu.high / found.fvu.low < 2.5, "an interval that holds anything says nothing"
    assert found.dead.low <= outcome.dead <= found.dead.high
    assert outcome.l0 == pytest.approx(found.l0)
    # The rate suggested is near the best: far from it on either side it is worse.
    others = [found.trial.model_copy(update={"lr": found.trial.lr * f}) for f in (1 / 8, 8)]
    assert all(o.fvu > outcome.fvu for o in run_trials(others, train, heldout))


def test_a_probe_narrows_the_interval_and_all_is_the_same_twice(
    vectors: torch.Tensor, sharp: Suggestion
) -> None:
    settings = LIMIT.model_copy(update={"probe": False})
    plain, again = (suggest(vectors[:8192], tokens=TOKENS, settings=settings) for _ in range(2))
    assert sharp.fvu.high / sharp.fvu.low < 0.8 * plain.fvu.high / plain.fvu.low
    assert plain.probe == ()
    assert plain == again
    trials = [outcome.trial for outcome in sharp.probe[:1]]
    (repeated,) = run_trials(trials, vectors[: 8192 - 819], vectors[8192 - 819 : 8192])
    assert repeated.fvu == sharp.probe[0].fvu


def test_control_data_the_law_is_wrong_about_are_missed_without_a_probe_only(
    vectors: torch.Tensor, sharp: Suggestion
) -> None:
    """Numbers shifted by a factor of three: the guess is off, the probe puts it right."""
    true = measured()
    worse = dict(true.law.coefficients)
    worse["a"] += math.log(3)
    worse["z"] += math.log(3)
    law = true.law.model_copy(update={"coefficients": worse})
    off: Measured = true.model_copy(update={"law": law})
    plain = LIMIT.model_copy(update={"probe": False})
    right = sharp.fvu.value
    wrong = suggest(vectors[:8192], tokens=TOKENS, settings=plain, numbers=off).fvu.value
    mended = suggest(vectors[:8192], tokens=TOKENS, settings=LIMIT, numbers=off).fvu.value
    assert abs(math.log(mended / right)) < 0.25
    assert abs(math.log(wrong / right)) > 2 * abs(math.log(mended / right))


def test_more_budget_buys_no_worse_and_time_counts_as_operations(vectors: torch.Tensor) -> None:
    said = [
        suggest(vectors, tokens=2**18, settings=SuggestSettings(k=8, flops=flops)).fvu.value
        for flops in (5e10, 5e11, 5e12)
    ]
    assert said == sorted(said, reverse=True)
    seconds = SuggestSettings(k=8, seconds=50, flops_per_second=1e10)
    timed = suggest(vectors, tokens=2**18, settings=seconds)
    assert (
        timed.trial
        == suggest(vectors, tokens=2**18, settings=SuggestSettings(k=8, flops=5e11)).trial
    )
    assert timed.seconds <= 50


def test_k_is_the_fewest_that_reach_a_goal(vectors: torch.Tensor) -> None:
    loose, tight = (
        suggest(vectors, tokens=2**17, settings=SuggestSettings(fvu=fvu)) for fvu in (0.5, 0.1)
    )
    assert loose.fvu.value <= 0.5
    assert loose.trial.k is not None
    assert tight.trial.k is not None
    assert loose.trial.k < tight.trial.k
    chosen = suggest(vectors, tokens=2**17)
    assert chosen.trial.k is not None
    assert chosen.trial.k in (4, 8), "4 features are planted per vector"
    assert any("TwoNN" in line for line in chosen.law)
    assert not any("TwoNN" in line for line in loose.law)


def test_with_a_penalty_the_weight_is_steered_and_more_of_it_means_fewer_latents(
    vectors: torch.Tensor,
) -> None:
    few, many = (
        suggest(vectors, tokens=2**16, settings=SuggestSettings(form="l1", k=k)) for k in (4, 16)
    )
    assert few.trial.k is None
    assert few.trial.target_l0 == 4
    assert few.trial.l1 is not None
    assert many.trial.l1 is not None
    assert few.trial.l1 > many.trial.l1
    (penalty,) = few.trial.settings().penalties
    assert penalty.target_l0 == 4
    top = suggest(vectors, tokens=2**16, settings=SuggestSettings(k=4))
    assert few.fvu.value > top.fvu.value, "at equal L0 a penalty reconstructs worse than TopK"


def test_what_cannot_be_paid_for_is_said(vectors: torch.Tensor) -> None:
    with pytest.raises(UserError, match="pays for no dictionary with k=8"):
        suggest(vectors, tokens=TOKENS, settings=SuggestSettings(k=8, flops=1e3))
    with pytest.raises(UserError, match="fewer than two steps"):
        suggest(vectors, tokens=100)
    with pytest.raises(UserError, match="either k"):
        Trial(n_latents=8, lr=1e-3, tokens=10).spec("s", 4)


def test_a_relation_turns_fvu_into_a_rise_of_the_loss(vectors: torch.Tensor) -> None:
    points = [Spliced(kind, f, 2 * f) for kind in ("truncation", "noise") for f in (0.1, 0.4)]
    found = suggest(
        vectors, tokens=TOKENS, settings=SuggestSettings(k=4), relation=Relation(tuple(points))
    )
    assert found.ce_increase is not None
    ratio = math.exp(measured().ce.excess)
    assert found.ce_increase.value == pytest.approx(2 * found.fvu.value * ratio, rel=1e-4)
    assert found.ce_increase.low < found.ce_increase.value < found.ce_increase.high


def test_more_error_at_a_site_costs_the_network_more() -> None:
    subject, rows = tiny_llama(), tiny_rows(16, 12)
    site = "blocks.0.resid_post"
    vectors = subject.run(rows, capture=[site], logits=False).sites[site][:, 1:].flatten(0, 1)
    found = relation(subject, rows, site, vectors, levels=(0.1, 0.5))
    assert {p.kind for p in found.points} == {"truncation", "noise"}
    for kind in ("truncation", "noise"):
        shares = [p.fvu for p in found.points if p.kind == kind]
        assert shares == sorted(shares)
    same = loss(subject, rows, site, None)
    assert loss(subject, rows, site, lambda x: x) == pytest.approx(same)
    assert loss(subject, rows, site, lambda x: x * 0 + vectors.mean(0)) != pytest.approx(same)
    assert relation(subject, rows, site, vectors, levels=(0.1, 0.5)) == found
