"""The feature table against a slow count by hand."""

import numpy as np
import pytest

from unweave.describe import PartEvidence, feature_table
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary


@pytest.fixture(scope="module")
def evidence() -> PartEvidence:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=30, positions=64)
    fires = [tokens == 1, tokens == 50, np.zeros_like(tokens, dtype=bool), tokens > 0]
    return planted_evidence(tokens, fires, vocabulary, noise=0.002)


def _firings(evidence: PartEvidence, latent: int) -> list[tuple[int, float]]:
    counts = np.diff(evidence.token_indptr)
    flat = np.repeat(np.arange(evidence.tokens.size), counts)
    mine = evidence.latent == latent
    return list(zip(flat[mine].tolist(), evidence.value[mine].tolist(), strict=True))


def test_statistics_are_what_counting_gives(evidence: PartEvidence) -> None:
    table = feature_table(evidence)
    for latent in range(evidence.n_latents):
        values = [value for _, value in _firings(evidence, latent)]
        assert table["count"][latent] == len(values)
        assert table["frequency"][latent] == pytest.approx(len(values) / (30 * 63))
        assert table["mean_active"][latent] == pytest.approx(np.mean(values or [0.0]), rel=1e-5)
        assert table["max_active"][latent] == pytest.approx(max(values or [0.0]))
        assert table["histogram"][latent].sum() == len(values)
        inside = np.histogram(values, bins=table["histogram_edges"].astype(float))[0]
        assert np.abs(inside - table["histogram"][latent]).sum() <= 0.02 * len(values) + 2


def test_examples_are_the_strongest_then_the_quantiles_of_the_rows_for_explaining(
    evidence: PartEvidence,
) -> None:
    table = feature_table(evidence)
    limit = evidence.explain_rows * evidence.tokens.shape[1]
    np.testing.assert_array_equal(table["example_band"], [0] * 10 + [1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    for latent in range(evidence.n_latents):
        known = dict(_firings(evidence, latent))
        position, value = table["example_position"][latent], table["example_value"][latent]
        there = position >= 0
        assert np.all(position[there] < limit)
        assert len(set(position[there].tolist())) == there.sum()
        np.testing.assert_allclose([known[p] for p in position[there].tolist()], value[there])
        assert np.all(np.diff(value[:10]) <= 0)
        assert np.all(value[~there] == 0)
        seen = [v for p, v in known.items() if p < limit]
        if seen:
            assert value[0] == max(seen)
        assert (np.diff(value[10:][there[10:]]) <= 0).all()


def test_no_row_fills_the_examples(evidence: PartEvidence) -> None:
    table = feature_table(evidence)
    rows = table["example_position"][3] // evidence.tokens.shape[1]
    assert np.bincount(rows).max() <= 2


def test_one_row_alone_still_shows_ten_examples() -> None:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=2, positions=64)
    evidence = planted_evidence(tokens, [tokens > 0], vocabulary, hit=0.9)
    assert (feature_table(evidence)["example_position"][0, :10] >= 0).all()


def test_a_silent_part_has_an_empty_table() -> None:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=4, positions=16)
    nothing = np.zeros_like(tokens, dtype=bool)
    table = feature_table(planted_evidence(tokens, [nothing] * 3, vocabulary, noise=0.0))
    assert table["count"].tolist() == [0, 0, 0]
    assert (table["example_position"] == -1).all()
    assert np.isfinite(table["histogram_edges"]).all()


def test_types_are_those_of_the_artifact(evidence: PartEvidence) -> None:
    kinds = {
        name: (array.dtype.name, array.shape) for name, array in feature_table(evidence).items()
    }
    assert kinds == {
        "count": ("int64", (4,)),
        "frequency": ("float32", (4,)),
        "mean_active": ("float32", (4,)),
        "max_active": ("float32", (4,)),
        "histogram": ("int32", (4, 32)),
        "histogram_edges": ("float32", (33,)),
        "example_position": ("int64", (4, 20)),
        "example_value": ("float32", (4, 20)),
        "example_band": ("int8", (20,)),
    }
