"""Lengths of the rule code, worked by hand."""

import math

import numpy as np
import pytest

from unweave.describe.claims import BigramClaim, PositionClaim, TokenClaim, UnexplainedClaim
from unweave.describe.code import (
    MEMBER_RATES,
    firing_bits,
    gamma_bits,
    quantise_activation,
    quantise_rate,
    quantise_relative,
    set_bits_up_to,
    subset_bits,
)

REST = {"otherwise_probability": 0.01, "otherwise_activation": 1.0}


@pytest.mark.parametrize(("number", "bits"), [(1, 1), (2, 3), (3, 3), (4, 5), (7, 5), (8, 7)])
def test_elias_gamma(number: int, bits: int) -> None:
    assert gamma_bits(number) == bits


def test_the_gamma_code_satisfies_krafts_inequality() -> None:
    assert sum(2.0 ** -gamma_bits(number) for number in range(1, 5000)) <= 1


def test_choosing_a_subset() -> None:
    assert subset_bits(10, 3) == pytest.approx(math.log2(math.comb(10, 3)))
    assert subset_bits(49152, 40) == pytest.approx(math.log2(math.comb(49152, 40)))


def test_table_of_set_costs_is_gamma_plus_subset() -> None:
    table = set_bits_up_to(50, 50)
    by_hand = [gamma_bits(m) + subset_bits(50, m) for m in range(1, 51)]
    np.testing.assert_allclose(table, by_hand, atol=1e-9)


def test_a_claim_without_a_rule_takes_4_plus_7_plus_7_bits() -> None:
    assert UnexplainedClaim(**REST).bits(49152) == 18


def test_two_tokens_of_1024() -> None:
    claim = TokenClaim(tokens=(3, 9), probability=(0.5, 0.5), activation=(1.0, 2.0), **REST)
    # kind 4, rest 7 + 7, gamma(2) 3, C(1024, 2) = 523,776, two keys of 4 + 3 each.
    assert claim.bits(1024) == pytest.approx(18 + 3 + math.log2(523_776) + 14)


def test_one_pair_of_1024_squared_and_one_octave_of_20() -> None:
    pair = BigramClaim(pairs=((3, 9),), probability=(0.5,), activation=(1.0,), **REST)
    assert pair.bits(1024) == 18 + 1 + 20 + 7
    octave = PositionClaim(octaves=(0,), probability=(0.5,), activation=(1.0,), **REST)
    assert octave.bits(1024) == pytest.approx(18 + 1 + math.log2(20) + 7)


def test_parameters_come_from_grids_as_large_as_their_bits() -> None:
    rates = np.unique(quantise_rate(np.linspace(0, 1, 200_001) ** 4))
    assert len(rates) <= 128
    assert rates.min() > 0
    assert rates.max() < 1
    assert len(MEMBER_RATES) == 16
    spread = np.geomspace(1e-9, 1e9, 10_000)
    assert len(np.unique(quantise_activation(spread))) == 128
    assert len(np.unique(quantise_relative(spread, np.ones_like(spread)))) == 8


def test_quantised_parameters_are_near() -> None:
    rate = np.geomspace(1e-5, 0.9, 1000)
    odds = np.log2(rate) - np.log2(1 - rate)
    coded = quantise_rate(rate)
    assert np.abs(np.log2(coded) - np.log2(1 - coded) - odds).max() <= 0.125 + 1e-9
    activation = np.geomspace(0.001, 1000, 1000)
    assert np.abs(np.log2(quantise_activation(activation) / activation)).max() <= 0.125 + 1e-9


def test_bits_of_firing_by_hand() -> None:
    bits = firing_bits(np.array([1, 0]), np.array([4, 4]), np.array([0.25, 0.5]))
    np.testing.assert_allclose(bits, [2 - 3 * math.log2(0.75), 4.0])
