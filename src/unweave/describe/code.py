"""The rule code: how many bits a claim takes, under a fixed prefix-free code.

A claim is sent as

1. its kind: 4 bits (10 kinds, room for 16);
2. how likely and how strongly the latent fires where the rule says nothing: 7 bits of log-odds
   (steps of 1/4, base 2, from -20) and 7 bits of activation (quarter octaves from 2^-16);
3. for a rule: how many keys m it lists, in Elias's gamma code; which, as the index among the
   C(U, m) subsets of the U keys of its kind; and 7 bits a key: 4 of log-odds (whole steps from
   -9 to 6) and 3 of activation (half octaves from 2^-1.5 to 2^2, relative to that of 2).

So a claim that lists nothing takes 18 bits, and naming one token of 49,152 takes 23.6 more.
"""

import math

import numpy as np
from jaxtyping import Float, Int

KIND_BITS = 4
RATE_BITS = 7
ACTIVATION_BITS = 7
CLAIM_BITS = KIND_BITS + RATE_BITS + ACTIVATION_BITS
MEMBER_RATE_BITS = 4
MEMBER_ACTIVATION_BITS = 3
MEMBER_BITS = MEMBER_RATE_BITS + MEMBER_ACTIVATION_BITS

_RATE_LOWEST, _RATE_STEP = -20.0, 0.25
_ACTIVATION_LOWEST, _ACTIVATION_STEP = -16.0, 0.25
_RELATIVE_LOWEST, _RELATIVE_STEP = -1.5, 0.5
MEMBER_LOG_ODDS = np.arange(-9.0, 7.0)


def probability_of(log_odds: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The probability at base-2 log-odds."""
    return 1.0 / (1.0 + np.exp2(-log_odds))


MEMBER_RATES = probability_of(MEMBER_LOG_ODDS)
"""The sixteen probabilities that a listed key can have."""


def quantise_rate(rate: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The nearest of the 128 rates of the code, in log-odds."""
    rate = np.clip(rate, 1e-9, 1 - 1e-9)
    step = np.round((np.log2(rate) - np.log2(1 - rate) - _RATE_LOWEST) / _RATE_STEP)
    return probability_of(_RATE_LOWEST + _RATE_STEP * np.clip(step, 0, 2**RATE_BITS - 1))


def quantise_activation(activation: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """The nearest of the 128 activations of the code, in octaves."""
    step = np.round((np.log2(np.maximum(activation, 1e-30)) - _ACTIVATION_LOWEST) * 4)
    return np.exp2(_ACTIVATION_LOWEST + _ACTIVATION_STEP * np.clip(step, 0, 2**ACTIVATION_BITS - 1))


def quantise_relative(
    activation: Float[np.ndarray, " members"], base: Float[np.ndarray, " members"]
) -> Float[np.ndarray, " members"]:
    """The nearest of the 8 activations that a listed key can have, given that of the claim."""
    octaves = np.log2(np.maximum(activation, 1e-30)) - np.log2(base)
    step = np.round((octaves - _RELATIVE_LOWEST) / _RELATIVE_STEP)
    top = 2**MEMBER_ACTIVATION_BITS - 1
    return base * np.exp2(_RELATIVE_LOWEST + _RELATIVE_STEP * np.clip(step, 0, top))


def gamma_bits(number: int) -> int:
    """Length of Elias's gamma code of a number >= 1."""
    assert number >= 1, number
    return 2 * (number.bit_length() - 1) + 1


def subset_bits(universe: int, size: int) -> float:
    """log2 of the number of subsets of this size.

    >>> subset_bits(8, 1), subset_bits(5, 5)
    (3.0, 0.0)
    """
    assert 0 <= size <= universe, (size, universe)
    return sum(math.log2((universe - i) / (i + 1)) for i in range(size))


def rule_bits(universe: int, size: int) -> float:
    """Length of step 3 of the code: a set of keys with their parameters."""
    return gamma_bits(size) + subset_bits(universe, size) + MEMBER_BITS * size


def set_bits_up_to(universe: int, largest: int) -> Float[np.ndarray, " sizes"]:
    """Bits to say which keys, without their parameters, for sets of 1 .. largest keys."""
    size = np.arange(1, largest + 1, dtype=np.float64)
    choose = np.cumsum(np.log2((universe - size + 1) / size))
    return choose + 2 * (np.frexp(size)[1] - 1) + 1


def firing_bits(
    fired: Float[np.ndarray, "*shape"] | Int[np.ndarray, "*shape"],
    total: Float[np.ndarray, "*shape"] | Int[np.ndarray, "*shape"],
    rate: Float[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Bits to say which of `total` places fired, `fired` of them, at a predicted rate."""
    return -(fired * np.log2(rate) + (total - fired) * np.log2(1 - rate))
