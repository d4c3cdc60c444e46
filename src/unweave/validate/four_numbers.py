"""The four numbers of an artifact: how true and how long, of the mathematics and of the words."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from unweave.validate.bootstrap import Interval


class Measured(BaseModel):
    """A number with its 95% interval and its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    value: float
    """The number."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    unit: str
    """Unit, in words."""

    @classmethod
    def of(cls, interval: Interval, unit: str) -> Self:
        """Name the unit of an interval."""
        return cls(value=interval.value, low=interval.low, high=interval.high, unit=unit)


class SemanticLength(Measured):
    """Length of the descriptions: per token like the others, and in all."""

    total_bits: float = Field(ge=0)
    """Bits of all descriptions together."""
    per: str
    """What the total is divided by, in words."""


class FourNumbers(BaseModel):
    """Accuracy and length, mathematical and semantic, on held-out text (DESIGN.md section 4)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    math_accuracy: Measured
    """Cross-entropy increase with everything replaced, propagated; lower is better."""
    math_length_bits: Measured
    """Bits per token to send what fires and how strongly; lower is better."""
    semantic_accuracy: Measured
    """Share of the bits of firing that the descriptions explain; higher is better."""
    semantic_length_bits: SemanticLength
    """Bits of the descriptions; lower is better."""


def four_numbers(
    *,
    ce_increase: Interval,
    math_length: Interval,
    semantic_fraction: Interval,
    description_bits: float,
    tokens: int,
) -> FourNumbers:
    """Assemble the four numbers; `tokens` is what the descriptions' length is amortised over.

    The length of the descriptions is a count, not an estimate: its interval has no width.
    """
    per_token = description_bits / tokens
    return FourNumbers(
        math_accuracy=Measured.of(ce_increase, "nats per token"),
        math_length_bits=Measured.of(math_length, "bits per token"),
        semantic_accuracy=Measured.of(semantic_fraction, "share of the bits of firing"),
        semantic_length_bits=SemanticLength(
            value=per_token,
            low=per_token,
            high=per_token,
            unit="bits per token",
            total_bits=description_bits,
            per=f"{tokens:,} tokens the artifact was made from",
        ),
    )
