"""The last stages: scores, metrics, report, seal."""

from pathlib import Path

from unweave.artifact import layout
from unweave.artifact.atomic import write_json_lines
from unweave.artifact.manifest import Provenance, seal
from unweave.artifact.records import SubjectRecord, TextRecord
from unweave.artifact.scores import (
    Baseline,
    Control,
    Detection,
    Fidelity,
    FourNumbers,
    Interval,
    Number,
    PartScore,
    Scores,
    Semantic,
    Stage,
    write_scores,
)
from unweave.dictionaries.part import Part
from unweave.pipeline.describing import features_alive
from unweave.pipeline.evidence import explain_rows
from unweave.pipeline.fitting import training_log
from unweave.pipeline.job import Job
from unweave.pipeline.results import (
    SemanticResult,
    SpliceResult,
)
from unweave.pipeline.rivals import BASELINES, Rivals
from unweave.report import write_report
from unweave.subject import Subject
from unweave.subject.rows import TokenRows
from unweave.validate.baselines import FewCoefficients
from unweave.validate.length import VALUE_BITS


def write_scores_and_metrics(
    job: Job,
    parts: dict[str, Part],
    text: TokenRows,
    splice: SpliceResult,
    semantic: SemanticResult,
    baselines: dict[str, SemanticResult],
    others: Rivals,
) -> None:
    """scores.json and metrics.jsonl."""
    numbers = sum(parameter.numel() for part in parts.values() for parameter in part.parameters())
    tokens = text.train.numel()
    alive = {name: features_alive(job, name) for name in parts}
    latents = sum(part.spec.n_latents for part in parts.values())
    scores = Scores(
        subject=subject_record(job.subject),
        text=text_record(text),
        tokens=tokens,
        seconds=sum(job.seconds.values()),
        peak_rss_bytes=job.peak(),
        threads=job.workers.threads,
        dtype="float32",
        ce_original=splice.ce_original,
        splice=splice.splice,
        controls={
            "mean_ablation": _control(
                splice.rivals["mean_ablation"], "every part replaced by its mean output"
            ),
            "random_dictionary": _control(
                splice.rivals["random_dictionary"],
                "every part replaced by a dictionary of random directions with the same norms",
            ),
        },
        active_features_per_token=semantic.active_per_token,
        alive_fraction=sum(alive[n] * p.spec.n_latents for n, p in parts.items()) / latents,
        four_numbers=_four(splice.splice.propagated, semantic, numbers, tokens),
        baselines={
            kind: _baseline(
                splice.rivals[kind],
                found,
                _numbers(others.baselines[kind]),
                tokens,
                BASELINES[kind],
            )
            for kind, found in baselines.items()
        },
        semantic=_semantic(semantic),
        parts=[_part(part, splice, alive[name]) for name, part in parts.items()],
        stages=[Stage(name=name, seconds=s) for name, s in job.seconds.items()],
        more={
            "code_bits": _number(semantic.code_bits, "bits/token"),
            "dictionary_bits": Number(value=numbers * VALUE_BITS, unit="bits"),
            "description_bits": Number(value=semantic.description_bits, unit="bits"),
            "bits_explained": _number(semantic.bits_per_token, "bits/token"),
            "bits_of_firing": _number(semantic.base_bits_per_token, "bits/token"),
        },
    )
    write_scores(job.artifact / layout.SCORES, scores)
    write_json_lines(job.artifact / layout.METRICS, training_log(job))


def _numbers(placed: dict[str, FewCoefficients]) -> int:
    return sum(few.W_dec.numel() for few in placed.values())


def _number(interval: Interval, unit: str, *, plus: float = 0.0) -> Number:
    ends = [None if end is None else end + plus for end in (interval.low, interval.high)]
    return Number(value=interval.value + plus, low=ends[0], high=ends[1], unit=unit)


def _control(found: Fidelity, note: str) -> Control:
    return Control(
        ce_increase=found.ce_increase, kl=found.kl, top1_agreement=found.top1_agreement, note=note
    )


def _four(found: Fidelity, semantic: SemanticResult, numbers: int, tokens: int) -> FourNumbers:
    """Dictionary and descriptions are amortised over the tokens that the job trained on."""
    dictionary = numbers * VALUE_BITS / tokens
    return FourNumbers(
        math_accuracy=_number(found.ce_increase, "nats/token"),
        math_length_bits=_number(semantic.code_bits, "bits/token", plus=dictionary),
        semantic_accuracy=_number(semantic.bits_fraction, "share"),
        semantic_length_bits=Number(value=semantic.description_bits / tokens, unit="bits/token"),
    )


def _baseline(
    spliced: Fidelity, semantic: SemanticResult, numbers: int, tokens: int, note: str
) -> Baseline:
    four = _four(spliced, semantic, numbers, tokens)
    return Baseline(
        math_accuracy=four.math_accuracy,
        math_length_bits=four.math_length_bits,
        semantic_accuracy=four.semantic_accuracy,
        semantic_length_bits=four.semantic_length_bits,
        note=note,
        splice={"propagated": spliced},
    )


def _semantic(found: SemanticResult) -> Semantic:
    return Semantic(
        described=found.described,
        auroc_mean=found.auroc,
        correlation_mean=found.correlation,
        shuffled=Detection(
            auroc_mean=found.auroc_shuffled, correlation_mean=found.correlation_shuffled
        ),
        more={
            "bits_fraction_shuffled": _number(found.bits_fraction_shuffled, "share"),
            "scored": Number(value=found.scored, unit="features"),
        },
    )


def _part(part: Part, splice: SpliceResult, alive: float) -> PartScore:
    spec, fidelity = part.spec, splice.parts[part.spec.name]
    return PartScore(
        part=spec.name,
        site_in=spec.input_site,
        site_out=spec.output_site,
        n_latents=spec.n_latents,
        l0=fidelity.l0,
        alive_fraction=alive,
        fvu=fidelity.fvu,
        fvu_robust=fidelity.fvu_robust,
        single=splice.single[spec.name],
        more={"l2_ratio": Number(value=fidelity.l2_ratio, unit="ratio")},
    )


def subject_record(subject: Subject) -> SubjectRecord:
    """The subject as manifest and scores name it."""
    return SubjectRecord(
        name=subject.name,
        fingerprint=subject.fingerprint,
        family=subject.family,
        n_layers=subject.n_layers,
        d_model=subject.d_model,
        d_mlp=subject.d_mlp,
        n_heads=subject.n_heads,
        n_kv_heads=subject.n_kv_heads,
        d_head=subject.d_head,
        vocab_size=subject.vocab_size,
        parameters=subject.parameters,
    )


def text_record(text: TokenRows) -> TextRecord:
    """The text as manifest and scores name it."""
    return TextRecord(
        name=text.source,
        sha256=text.sha256,
        tokens=text.train.numel(),
        heldout_tokens=text.heldout.numel(),
        context=text.train.shape[1],
    )


def seal_and_report(job: Job, parts: dict[str, Part], text: TokenRows) -> Path:
    """Hash everything, write the report, and put the artifact where it was asked for."""
    provenance = Provenance(
        subject=subject_record(job.subject),
        text=text_record(text),
        settings=job.settings.model_dump(mode="json", exclude={"threads", "checkpoint_seconds"}),
        seed=job.settings.seed,
        threads=job.workers.threads,
        dtype="float32",
        parts=list(parts),
        explain_rows=explain_rows(job),
    )
    seal(job.artifact, provenance)
    write_report(job.artifact)
    return job.finish()
