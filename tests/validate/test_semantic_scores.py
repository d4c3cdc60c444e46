"""Scores of descriptions against slow, dense computation, and against worlds we planted."""

import time

import numpy as np
import pytest

from unweave.describe import Description, PartEvidence, describe_part
from unweave.describe.claims import TokenClaim, UnexplainedClaim
from unweave.describe.explain import base_rates
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary
from unweave.validate.semantic import (
    PartScores,
    grouped_auroc,
    score_part,
    semantic_accuracy,
    with_scores,
)

try:
    from sklearn import metrics
except ImportError:
    metrics = None

VOCABULARY = planted_vocabulary()
TOKENS = planted_text(VOCABULARY)


def _world() -> PartEvidence:
    """Latents of many kinds, some noisy, some random, one dense, one dead."""
    random = np.random.default_rng(1)
    previous = np.roll(TOKENS, 1, axis=1)
    classes = VOCABULARY.class_of[TOKENS]
    fires = [np.isin(TOKENS, random.integers(1, 400, 6)) for _ in range(15)]
    fires += [np.isin(previous, random.integers(1, 400, 6)) for _ in range(5)]
    fires += [classes == name for name in (3, 4, 5, 7)]
    fires += [random.random(TOKENS.shape) < share for share in (0.002, 0.02, 0.95)]
    fires += [np.zeros_like(TOKENS, dtype=bool)]
    return planted_evidence(TOKENS, fires, VOCABULARY, hit=0.8, noise=0.003)


@pytest.fixture(scope="module")
def evidence() -> PartEvidence:
    return _world()


@pytest.fixture(scope="module")
def described(evidence: PartEvidence) -> list[Description]:
    return describe_part(evidence)


@pytest.fixture(scope="module")
def scores(evidence: PartEvidence, described: list[Description]) -> PartScores:
    return score_part(evidence, described)


def _auroc(fired: np.ndarray, score: np.ndarray) -> float:
    """By definition: all pairs of a firing and a silent place."""
    firing, silent = score[fired][:, None], score[~fired][None, :]
    return float(np.mean((firing > silent) + 0.5 * (firing == silent)))


def _dense(evidence: PartEvidence, latent: int) -> np.ndarray:
    """True activation at every held-out place of one latent."""
    truth = np.zeros(evidence.heldout_tokens.shape)
    mine = evidence.heldout.latent == latent
    truth[evidence.heldout.row[mine], evidence.heldout.position[mine]] = evidence.heldout.value[
        mine
    ]
    return truth[:, 1:]


def test_every_score_equals_its_dense_definition(
    evidence: PartEvidence, described: list[Description], scores: PartScores
) -> None:
    rates = base_rates(evidence).rate
    rows = np.zeros(len(evidence.heldout_tokens))
    row_total = np.zeros_like(rows)
    for latent, description in enumerate(described):
        truth = _dense(evidence, latent)
        fired = truth > 0
        predicted = description.claim.predict(evidence.heldout_tokens, VOCABULARY)
        chance, expected = predicted.probability[:, 1:], predicted.activation[:, 1:]
        auroc = _auroc(fired.ravel(), chance.ravel())
        assert scores.true.auroc[latent] == pytest.approx(auroc, abs=1e-12)
        if np.ptp(expected) > 0:
            pearson = np.corrcoef(expected.ravel(), truth.ravel())[0, 1]
            assert scores.true.correlation[latent] == pytest.approx(pearson, abs=1e-9)
        else:
            assert scores.true.correlation[latent] == 0
        said = -np.log2(np.where(fired, chance, 1 - chance))
        base = -np.log2(np.where(fired, rates[latent], 1 - rates[latent]))
        assert scores.true.bits_total[latent] == pytest.approx(base.sum())
        assert scores.true.bits_explained[latent] == pytest.approx((base - said).sum(), abs=1e-6)
        pointed = chance > description.claim.otherwise_probability
        assert scores.true.recall[latent] == pytest.approx((pointed & fired).sum() / fired.sum())
        if pointed.any():
            assert scores.true.precision[latent] == pytest.approx(fired[pointed].mean())
        rows += (base - said).sum(axis=1)
        row_total += base.sum(axis=1)
    np.testing.assert_allclose(scores.true.row_bits_explained, rows, atol=1e-6)
    np.testing.assert_allclose(scores.row_bits_total, row_total)


@pytest.mark.parametrize("seed", range(20))
def test_auroc_with_ties_is_that_of_all_pairs_and_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    n, places = 5, 200
    latent = np.repeat(np.arange(n), places)
    score = random.integers(0, random.integers(1, 12), size=n * places) / 8
    fired = (random.random(n * places) < 0.1 + 0.5 * score / 2).astype(np.int64)
    ours = grouped_auroc(latent, score, fired, np.ones_like(fired), n)
    for one in range(n):
        truth, said = fired[latent == one], score[latent == one]
        assert ours[one] == pytest.approx(_auroc(truth == 1, said), abs=1e-12)
        if metrics is not None:
            assert ours[one] == pytest.approx(metrics.roc_auc_score(truth, said), abs=1e-12)


def test_auroc_cannot_be_said_of_a_latent_that_never_or_always_fires() -> None:
    latent, score = np.array([0, 0, 1, 1]), np.array([0.1, 0.9, 0.1, 0.9])
    found = grouped_auroc(latent, score, np.array([0, 0, 2, 3]), np.array([5, 5, 2, 3]), 3)
    assert np.isnan(found).all()


def test_a_perfect_claim_scores_one_and_its_reverse_zero() -> None:
    evidence = planted_evidence(TOKENS, [TOKENS == 7] * 2, VOCABULARY, hit=1.0, noise=0.0)
    rest = {"otherwise_activation": 1.0}
    right = TokenClaim(
        tokens=(7,), probability=(0.98,), activation=(5.0,), otherwise_probability=0.0001, **rest
    )
    wrong = TokenClaim(
        tokens=(7,), probability=(0.002,), activation=(1.0,), otherwise_probability=0.5, **rest
    )
    scores = score_part(evidence, [right, wrong]).true
    assert scores.auroc.tolist() == [1.0, 0.0]
    assert scores.correlation[0] > 0.95
    assert scores.correlation[1] < -0.9
    assert scores.bits_explained[0] > 0.9 * scores.bits_total[0]
    assert scores.bits_explained[1] < -scores.bits_total[1]
    assert scores.precision[0] == scores.recall[0] == 1.0


def test_random_firing_scores_chance_and_no_bits() -> None:
    random = np.random.default_rng(0)
    fires = [random.random(TOKENS.shape) < 0.02 for _ in range(60)]
    evidence = planted_evidence(TOKENS, fires, VOCABULARY, hit=1.0, noise=0.0)
    scores = score_part(evidence, describe_part(evidence))
    assert abs(np.mean(scores.true.auroc) - 0.5) < 0.01
    total = semantic_accuracy([scores])
    assert abs(total.fraction.value) < 0.005
    # Nothing was said of when they fire, so shuffling what was said changes nothing.
    assert total.fraction_shuffled.value == pytest.approx(total.fraction.value, abs=0.01)
    assert abs(np.mean(scores.shuffled.auroc) - 0.5) < 0.01


def test_an_unexplained_latent_explains_exactly_nothing(evidence: PartEvidence) -> None:
    rates = base_rates(evidence).rate.tolist()
    null = [UnexplainedClaim(otherwise_probability=p, otherwise_activation=1.0) for p in rates]
    scores = score_part(evidence, null)
    np.testing.assert_array_equal(scores.true.bits_explained, 0.0)
    np.testing.assert_allclose(scores.true.row_bits_explained, 0.0, atol=1e-9)
    assert scores.summary.auroc.value == 0.5


def test_shuffled_descriptions_are_clearly_worse(scores: PartScores) -> None:
    summary = scores.summary
    assert summary.auroc.low > 0.75 > 0.6 > summary.auroc_shuffled.high
    assert summary.correlation.low > 0.5 > 0.1 > summary.correlation_shuffled.high
    assert summary.bits_fraction.low > 0.2 > 0 > summary.bits_fraction_shuffled.high
    total = semantic_accuracy([scores])
    assert total.fraction.low > 0 > total.fraction_shuffled.high


def test_totals_over_parts_add_bits(scores: PartScores) -> None:
    one, two = semantic_accuracy([scores]), semantic_accuracy([scores, scores])
    assert two.fraction == one.fraction
    assert two.bits_per_token.value == pytest.approx(2 * one.bits_per_token.value)
    assert one.bits_per_token.value == pytest.approx(
        one.fraction.value * one.base_bits_per_token.value
    )
    assert one.fraction.low < one.fraction.value < one.fraction.high


def test_latents_that_fire_nowhere_are_left_out(scores: PartScores, evidence: PartEvidence) -> None:
    firing = np.unique(evidence.heldout.latent)
    assert scores.summary.scored == len(firing)


def test_a_part_that_is_silent_on_held_out_rows_has_no_means() -> None:
    nothing = np.zeros_like(TOKENS, dtype=bool)
    evidence = planted_evidence(TOKENS, [nothing] * 2, VOCABULARY, noise=0.0)
    scores = score_part(evidence, describe_part(evidence))
    assert scores.summary.scored == 0
    assert np.isnan(scores.summary.auroc.value)
    assert np.isfinite(semantic_accuracy([scores]).bits_per_token.value)


def test_scores_are_filled_into_descriptions(
    described: list[Description], scores: PartScores
) -> None:
    filled = with_scores(described, scores)[0]
    assert filled.scores is not None
    assert filled.scores.auroc == scores.true.auroc[0]
    assert filled.text == described[0].text


def test_scoring_twice_gives_the_same(
    evidence: PartEvidence, described: list[Description], scores: PartScores
) -> None:
    again = score_part(evidence, described)
    assert again.summary == scores.summary
    np.testing.assert_array_equal(again.shuffled.auroc, scores.shuffled.auroc)


def test_thousands_of_latents_are_described_and_scored_in_seconds() -> None:
    random = np.random.default_rng(0)
    n, k, rows, positions = 2000, 16, 64, 128
    tokens = planted_text(VOCABULARY, rows=rows, positions=positions)
    # Each token has favourite latents, which fire among others at random.
    favourite = random.integers(0, n, size=(VOCABULARY.size, k))
    chosen = np.where(
        random.random((rows * positions, k)) < 0.6,
        favourite[tokens.ravel()],
        random.integers(0, n, size=(rows * positions, k)),
    )
    evidence = PartEvidence(
        part="L0.mlp",
        tokens=tokens,
        explain_rows=rows // 2,
        token_indptr=np.arange(0, rows * positions * k + 1, k),
        latent=chosen.ravel(),
        value=random.gamma(2.0, 1.0, size=chosen.size),
        n_latents=n,
        vocabulary=VOCABULARY,
    )
    start = time.process_time()
    scores = score_part(evidence, describe_part(evidence))
    assert time.process_time() - start < 5
    assert scores.summary.auroc.value > 0.65
