import numpy as np

from unweave.describe import describe_part
from unweave.describe.rules import compile_claims
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary
from unweave.validate.prediction import predicted_latents

VOCABULARY = planted_vocabulary()
TOKENS = planted_text(VOCABULARY, rows=40)
OTHER = planted_text(VOCABULARY, rows=6, seed=9)


def _described() -> list:
    classes = VOCABULARY.class_of[TOKENS]
    fires = [
        TOKENS == 5,
        np.roll(TOKENS == 5, 1, axis=1),
        classes == 3,
        np.isin(TOKENS, [5, 9]),
        TOKENS > 0,
        np.arange(128)[None].repeat(40, 0) < 4,
    ]
    return describe_part(planted_evidence(TOKENS, fires, VOCABULARY))


def test_sparse_predictions_equal_those_of_each_claim() -> None:
    described = _described()
    found = predicted_latents(described, OTHER, VOCABULARY)
    dense = np.tile(found.background, (OTHER.size, 1))
    place = np.repeat(np.arange(OTHER.size), np.diff(found.token_indptr))
    dense[place, found.latent] = found.value
    dense = dense.reshape(*OTHER.shape, -1)
    for latent, description in enumerate(described):
        expected = description.claim.predict(OTHER, VOCABULARY).activation
        np.testing.assert_allclose(dense[:, 1:, latent], expected[:, 1:])
    np.testing.assert_allclose(found.excess, found.value - found.background[found.latent])


def test_nothing_is_predicted_at_position_0() -> None:
    found = predicted_latents(_described(), OTHER, VOCABULARY)
    counts = np.diff(found.token_indptr).reshape(OTHER.shape)
    assert (counts[:, 0] == 0).all()
    assert counts[:, 1:].sum() == len(found.latent) > 0


def test_claims_compiled_once_predict_the_same() -> None:
    described = _described()
    table = compile_claims([description.claim for description in described], VOCABULARY.size)
    one, two = (predicted_latents(claims, OTHER, VOCABULARY) for claims in (described, table))
    np.testing.assert_array_equal(one.value, two.value)
    np.testing.assert_array_equal(one.token_indptr, two.token_indptr)


def test_predictions_come_near_the_truth_where_the_rule_is_exact() -> None:
    evidence = planted_evidence(TOKENS, [TOKENS == 5], VOCABULARY, hit=1.0, noise=0.0)
    found = predicted_latents(describe_part(evidence), evidence.heldout_tokens, VOCABULARY)
    truth = evidence.heldout
    place = np.repeat(np.arange(evidence.heldout_tokens.size), np.diff(found.token_indptr))
    np.testing.assert_array_equal(place, truth.row * 128 + truth.position)
    assert abs(found.value.mean() / truth.value.mean() - 1) < 0.2
