"""What each stage hands on: small records, kept on disk between attempts."""

from unweave.artifact.records import Record
from unweave.artifact.scores import Fidelity, Interval, Splice
from unweave.validate.bootstrap import Interval as Measured
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import RowScores


class Done(Record):
    """A stage whose results are files."""


class TextResult(Record):
    """The text that was read."""

    source: str
    description: str
    sha256: str


class FiringsResult(Record):
    """The evidence text."""

    explain_rows: int
    """Its first rows, which explainers may see."""


class SemanticResult(Record):
    """What the descriptions of a set of parts amount to, on held-out evidence."""

    described: int
    """Latents with a description: those that fired on the rows for explaining."""
    scored: int
    """Latents that fired on the held-out rows."""
    description_bits: float
    """Length of all descriptions."""
    active_per_token: float
    """Latents active per token, over all parts."""
    code_bits: Interval
    """Bits per token to send what fires and how strongly."""
    bits_fraction: Interval
    """Share of the bits of firing that descriptions explain."""
    bits_fraction_shuffled: Interval
    """The same for descriptions given to other latents."""
    bits_per_token: Interval
    """Bits of firing explained per token."""
    base_bits_per_token: Interval
    """Bits of firing per token at every latent's base rate."""
    auroc: Interval
    """Mean over scored latents."""
    auroc_shuffled: Interval
    """Its control."""
    correlation: Interval
    """Mean over scored latents."""
    correlation_shuffled: Interval
    """Its control."""


class PartFidelity(Record):
    """How well one part reproduces its block on held-out text, reading clean inputs."""

    fvu: float
    fvu_robust: float
    l2_ratio: float
    l0: float


class SpliceResult(Record):
    """Mathematical accuracy in every mode."""

    ce_original: Interval
    splice: Splice
    single: dict[str, Fidelity]
    """Every part's own."""
    parts: dict[str, PartFidelity]
    rivals: dict[str, Fidelity]
    """Baselines and controls, all of their stand-ins in place, propagated."""


def interval(measured: Measured, *, nothing: float = 0.0) -> Interval:
    """As a record; `nothing` stands where nothing could be measured."""
    if measured.value != measured.value:
        return Interval(value=nothing)
    return Interval(value=measured.value, low=measured.low, high=measured.high)


def fidelity_of(scores: RowScores) -> Fidelity:
    """Means with intervals from resampling rows."""
    return Fidelity(
        ce_increase=interval(mean_interval(scores.ce_increase)),
        kl=interval(mean_interval(scores.kl)),
        top1_agreement=interval(mean_interval(scores.top1_agreement)),
    )
