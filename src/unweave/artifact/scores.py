"""scores.json: how true the artifact was found to be, and what making it cost.

Numbers are on held-out text. An interval is a 95% confidence interval from resampling rows of
text; `low` and `high` are null where none was measured. Accuracy lost is in nats per token, length
in bits. `baselines` and `controls` are open: any method or control may add an entry of its own.
"""

from pathlib import Path
from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from unweave.artifact.atomic import write_text
from unweave.artifact.reading import record_in
from unweave.artifact.records import Record, SubjectRecord, TextRecord
from unweave.errors import UserError

Mode = Literal["clean", "single", "propagated"]
"""Where replaced parts get their input: the original run; alone in it; the decompiled network."""


class Interval(Record):
    """A measured number with its 95% confidence interval."""

    value: float
    low: float | None = None
    """Lower end; null where no interval was measured."""
    high: float | None = None
    """Upper end; null where no interval was measured."""

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has both ends or none")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval's low end {self.low} exceeds its high end {self.high}")
        return self


class Number(Interval):
    """An interval in a unit that its name does not give away."""

    unit: str
    """`nats/token`, `bits/token`, `bits`, `share` ..."""


class Fidelity(Record):
    """What replacing does to the network's predictions."""

    ce_increase: Interval
    """Rise of the next-token loss, nats per token."""
    kl: Interval
    """KL divergence from the original's next-token distribution, nats per token."""
    top1_agreement: Interval
    """Share of positions whose most likely next token stays the same."""


class Splice(Record):
    """The fidelity in each splice mode."""

    clean: Fidelity
    """Every part replaced, each reading from the original run."""
    single: Fidelity
    """One part replaced at a time: the mean over parts (each part's own is in `parts`)."""
    propagated: Fidelity
    """Every part replaced, each reading from the decompiled network's own stream."""


class FourNumbers(Record):
    """Accuracy and length, mathematical and semantic."""

    math_accuracy: Number
    """Loss increase when everything is replaced (propagated): lower is better."""
    math_length_bits: Number
    """To send which latents fire and how strongly, per token."""
    semantic_accuracy: Number
    """How well the descriptions predict firing on held-out text: higher is better."""
    semantic_length_bits: Number
    """The length of the descriptions."""


class Baseline(FourNumbers):
    """The four numbers of another way to take the same network apart, at equal L0."""

    note: str = ""
    """What it is, in a sentence."""
    splice: dict[Mode, Fidelity] = Field(default_factory=dict)
    """Its fidelity in the modes that were measured."""


class Control(Record):
    """The loss when the network is treated worse than any replacement should."""

    ce_increase: Interval
    """Rise of the next-token loss, nats per token."""
    kl: Interval | None = None
    """KL divergence from the original, nats per token; null where not measured."""
    top1_agreement: Interval | None = None
    """Share of positions whose most likely next token stays the same; null where not measured."""
    note: str = ""
    """What was done, in a sentence."""


class Detection(Record):
    """How well words tell where features fire."""

    auroc_mean: Interval
    """Mean over described features of the area under the ROC curve; chance is 0.5."""
    correlation_mean: Interval
    """Mean correlation of the predicted with the true activation; chance is 0."""


class Semantic(Detection):
    """How the descriptions did on held-out text."""

    described: NonNegativeInt
    """Features that have a description and were scored."""
    shuffled: Detection
    """The same with every description given to another feature: the control."""
    more: dict[str, Number] = Field(default_factory=dict)
    """Further measurements, by name."""


class PartScore(Record):
    """How faithful one part is."""

    part: str
    """Its name, such as `L3.mlp`."""
    site_in: str
    """Where it reads."""
    site_out: str
    """Where it writes."""
    n_latents: PositiveInt
    """Latents, dead ones included."""
    l0: NonNegativeFloat
    """Latents active per token, mean."""
    alive_fraction: NonNegativeFloat
    """Share of latents that fired at all."""
    fvu: NonNegativeFloat
    """Fraction of variance unexplained."""
    fvu_robust: NonNegativeFloat
    """The same with massive activations clipped, so that they do not drown the rest."""
    single: Fidelity
    """The network's predictions with this part alone replaced."""
    more: dict[str, Number] = Field(default_factory=dict)
    """Further measurements, by name."""


class Stage(Record):
    """How long a stage of the job took."""

    name: str
    seconds: NonNegativeFloat


class Scores(Record):
    """Everything measured about one artifact."""

    subject: SubjectRecord
    text: TextRecord
    tokens: PositiveInt
    """Tokens trained on."""
    seconds: NonNegativeFloat
    """Wall clock of the whole job, summed over interrupted runs."""
    peak_rss_bytes: PositiveInt
    """Largest resident memory of the process."""
    threads: PositiveInt
    """Threads used."""
    dtype: str
    """Number format of the parts."""
    ce_original: Interval
    """The untouched subject's next-token loss, nats per token."""
    splice: Splice
    controls: dict[str, Control]
    """By name; `mean_ablation` (every part replaced by its mean output) is always there."""
    active_features_per_token: NonNegativeFloat
    """Over all parts."""
    alive_fraction: NonNegativeFloat
    """Share of all latents that fired at all."""
    four_numbers: FourNumbers
    baselines: dict[str, Baseline]
    """By name: `neurons`, `pca` ..."""
    semantic: Semantic
    parts: list[PartScore]
    """By layer."""
    stages: list[Stage]
    """In the order they ran."""
    more: dict[str, Number] = Field(default_factory=dict)
    """Further measurements of the whole, by name."""

    @model_validator(mode="after")
    def _has_mean_ablation(self) -> "Scores":
        if "mean_ablation" not in self.controls:
            raise ValueError("controls lack mean_ablation, without which no number can be read")
        return self


def write_scores(path: Path, scores: Scores) -> None:
    """Write scores.json, whole or not at all."""
    write_text(path, scores.model_dump_json(indent=1) + "\n")


def read_scores(path: Path) -> Scores:
    """Read scores.json; UserError when it is missing or does not fit."""
    if not path.is_file():
        raise UserError(f"No file {path}: the artifact is unfinished; run decompile again")
    return record_in(path, Scores)
