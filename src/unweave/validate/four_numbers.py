"""The four numbers of an artifact: how true and how long, of the mathematics and of the words."""

import math

from unweave.artifact.scores import FourNumbers, Number
from unweave.validate.bootstrap import Interval


def number(interval: Interval, unit: str) -> Number:
    """The interval with its unit, as scores.json stores it; unknown ends are left out.

    >>> number(Interval(0.5, 0.4, 0.6), "nats/token").high
    0.6
    """
    if math.isnan(interval.low) or math.isnan(interval.high):
        return Number(value=interval.value, unit=unit)
    return Number(value=interval.value, low=interval.low, high=interval.high, unit=unit)


def four_numbers(
    *,
    ce_increase: Interval,
    math_length: Interval,
    semantic_fraction: Interval,
    description_bits: float,
    tokens: int,
) -> FourNumbers:
    """Assemble the four numbers (DESIGN.md section 4); all measured on held-out text.

    ce_increase: with everything replaced, propagated, nats per token. math_length: bits per token,
    dictionaries amortised. semantic_fraction: share of the bits of firing that the descriptions
    explain. description_bits: length of all descriptions together, amortised over `tokens`, the
    tokens that the dictionaries are amortised over too. That length is counted, not estimated, so
    its interval has no width.
    """
    per_token = description_bits / tokens
    return FourNumbers(
        math_accuracy=number(ce_increase, "nats/token"),
        math_length_bits=number(math_length, "bits/token"),
        semantic_accuracy=number(semantic_fraction, "share"),
        semantic_length_bits=Number(
            value=per_token, low=per_token, high=per_token, unit="bits/token"
        ),
    )


def description_totals(description_bits: float, described: int) -> dict[str, Number]:
    """What four_numbers amortises away: the descriptions' length in all and for each."""
    each = description_bits / described if described else 0.0
    return {
        "description_bits": Number(value=description_bits, unit="bits"),
        "description_bits_each": Number(value=each, unit="bits"),
    }
