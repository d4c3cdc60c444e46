"""Lengths in bits: the worked numbers of MDL-SAE (arXiv:2410.11179) and hand cases."""

from dataclasses import replace

import numpy as np
import pytest

from unweave.describe import describe_part
from unweave.validate.bootstrap import Interval
from unweave.validate.four_numbers import description_totals, four_numbers, number
from unweave.validate.length import (
    VALUE_BITS,
    dense_bits,
    dictionary_bits,
    edge_bits,
    entropy_bits,
    frequency_bits,
    mathematical_length,
    one_hot_bits,
    semantic_length,
    sparse_bits,
)
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary
from unweave.validate.semantic import score_part


def test_a_dense_gpt2_vector_is_5376_bits() -> None:
    assert dense_bits(768) == 5376


def test_a_sparse_gpt2_vector_is_1403_bits() -> None:
    assert sparse_bits(65, 24576) == pytest.approx(1403, abs=0.1)


def test_one_of_1024() -> None:
    assert one_hot_bits(1024) == 10


def test_a_one_hot_code_of_gpt2_contexts_is_13993_bits() -> None:
    index = one_hot_bits(50_257**128)
    assert index == pytest.approx(1999, abs=0.1)
    assert VALUE_BITS * index == pytest.approx(13_993, abs=0.5)


def test_the_frequency_code_by_hand() -> None:
    # Half the time: 1 bit. A quarter: 2 - 0.75 log2 3. Never and always: nothing to say.
    frequency = np.array([0.5, 0.25, 0.0, 1.0])
    expected = np.array([1.0, 2 - 0.75 * np.log2(3), 0.0, 0.0])
    np.testing.assert_allclose(entropy_bits(frequency), expected)
    assert frequency_bits(frequency, 4) == pytest.approx(expected.sum() + 1.75 * 4)


def test_the_frequency_code_beats_indices_and_uneven_frequencies_beat_even_ones() -> None:
    even = np.full(4096, 32 / 4096)
    uneven = 1 / np.arange(1, 4097)
    uneven *= 32 / uneven.sum()
    assert frequency_bits(np.minimum(uneven, 1)) < frequency_bits(even) < sparse_bits(32, 4096)


def test_dictionary_and_edges_by_hand() -> None:
    assert dictionary_bits(100, 8, 6, 1000, 7) == 100 * 16 * 7 / 1000
    assert edge_bits(10, 256, 7) == 10 * (16 + 7)


def test_measured_length_is_near_the_formula_on_frequencies() -> None:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=400)
    random = np.random.default_rng(0)
    fires = [random.random(tokens.shape) < share for share in (0.01, 0.1, 0.3)]
    evidence = planted_evidence(tokens, fires, vocabulary, hit=1.0, noise=0.0)
    scores = score_part(evidence, describe_part(evidence))
    found = mathematical_length([scores], value_bits=5)
    assert found.value == pytest.approx(frequency_bits(np.array([0.01, 0.1, 0.3]), 5), rel=0.02)
    assert found.low < found.value < found.high
    assert mathematical_length([scores], amortised=100.0).low > 100


def test_the_wrong_frequencies_cost_more() -> None:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=100)
    busy = np.zeros(tokens.shape, dtype=bool)
    busy[50:] = np.random.default_rng(0).random((50, 128)) < 0.3
    evidence = planted_evidence(tokens, [busy], vocabulary, hit=1.0, noise=0.0)
    scores = score_part(evidence, describe_part(evidence))
    assert mathematical_length([scores]).value > 1.5 * frequency_bits(np.array([0.3]))


def test_dead_latents_need_no_description() -> None:
    assert semantic_length(np.array([18.0, 40.0, 18.0]), np.array([True, True, False])) == 58


def test_the_four_numbers_are_assembled() -> None:
    four = four_numbers(
        ce_increase=Interval(0.5, 0.4, 0.6),
        math_length=Interval(900.0, 880.0, 920.0),
        semantic_fraction=Interval(0.3, np.nan, np.nan),
        description_bits=5000.0,
        tokens=1000,
    )
    assert four.math_accuracy == number(Interval(0.5, 0.4, 0.6), "nats/token")
    assert four.semantic_accuracy.low is None
    assert four.semantic_length_bits.value == 5
    assert four.model_validate_json(four.model_dump_json()) == four
    assert description_totals(5000.0, 100)["description_bits_each"].value == 50


def test_amortising_over_no_tokens_is_an_error() -> None:
    one = Interval(1.0, 1.0, 1.0)
    with pytest.raises(ZeroDivisionError):
        four_numbers(
            ce_increase=one, math_length=one, semantic_fraction=one, description_bits=1.0, tokens=0
        )


def test_evidence_that_does_not_fit_is_refused() -> None:
    vocabulary = planted_vocabulary()
    tokens = planted_text(vocabulary, rows=4)
    evidence = planted_evidence(tokens, [tokens == 5], vocabulary)
    with pytest.raises(AssertionError):
        replace(evidence, token_indptr=evidence.token_indptr[:-1])
    with pytest.raises(AssertionError):
        replace(evidence, explain_rows=0)
