"""Semantic accuracy: how well the descriptions of a part predict its firings on held-out text.

Every score comes from groups of equally predicted places (`unweave.validate.matches`) and is
exact. The bits of a description are those it saves on saying where its latent fires, against the
base rate that the rows for explaining had; a description that misleads has negative bits, and
totals contain them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict

from unweave.describe.claims import Claim
from unweave.describe.code import firing_bits
from unweave.describe.describe import Description, HeldoutScores
from unweave.describe.evidence import PartEvidence
from unweave.describe.explain import base_rates
from unweave.describe.rules import RuleTable, compile_claims
from unweave.describe.tally import sum_by
from unweave.validate.bootstrap import (
    BootstrapSettings,
    Interval,
    intervals,
    mean_interval,
    ratio_interval,
)
from unweave.validate.matches import Groups, Keyed, group_places, keyed_text, sum_by_place


class SemanticSettings(BaseModel):
    """Settings of the scores of descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals: over held-out rows for bits, over latents for means of scores."""
    shuffle_seed: int = 0
    """Seed of the shuffled control."""


@dataclass(frozen=True)
class LatentScores:
    """Scores of every latent of a part on held-out rows; nan where a latent did not fire there."""

    auroc: Float[np.ndarray, " latents"]
    """Chance that a firing place gets a higher probability than a silent one, ties half."""
    correlation: Float[np.ndarray, " latents"]
    """Pearson correlation of expected and true activation over all places; 0 if the
    description expects the same everywhere."""
    bits_explained: Float[np.ndarray, " latents"]
    """Bits of firing saved against the base rate, over all held-out rows."""
    bits_total: Float[np.ndarray, " latents"]
    """Bits of firing at the base rate, over all held-out rows."""
    precision: Float[np.ndarray, " latents"]
    """Share of the places the rule points at where the latent fired; nan if there are none."""
    recall: Float[np.ndarray, " latents"]
    """Share of the firings at places the rule points at."""
    row_bits_explained: Float[np.ndarray, " rows"]
    """Bits explained in each held-out row, summed over latents."""


@dataclass(frozen=True)
class PartScores:
    """Scores of the descriptions of a part, the same for shuffled descriptions, and summaries."""

    part: str
    """Part, as `L3.mlp`."""
    true: LatentScores
    """With each latent's own description."""
    shuffled: LatentScores
    """Control: each latent with the rule of another one, but its own base rate."""
    count: Int[np.ndarray, " latents"]
    """Firings on held-out rows."""
    mass: Float[np.ndarray, " latents"]
    """Sum of the activations on held-out rows."""
    alive: Int[np.ndarray, " alive"]
    """Latents that fired on the rows for explaining: those that have a description."""
    row_bits_total: Float[np.ndarray, " rows"]
    """Bits of firing at the base rate in each held-out row, summed over latents."""
    row_firings: Int[np.ndarray, " rows"]
    """Firings in each held-out row."""
    places_per_row: int
    """Tokens of a row, position 0 left out."""
    summary: "PartSummary"
    """Means over the latents that fired on held-out rows."""


class PartSummary(BaseModel):
    """Means over the latents that fired on held-out rows; intervals by resampling latents."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    scored: int
    """Latents that fired on held-out rows."""
    auroc: Interval
    """Mean, latents weighted equally."""
    auroc_by_mass: Interval
    """Mean, latents weighted by their summed activation."""
    auroc_shuffled: Interval
    """Mean of the control, latents weighted equally."""
    correlation: Interval
    """Mean, latents weighted equally."""
    correlation_by_mass: Interval
    """Mean, latents weighted by their summed activation."""
    correlation_shuffled: Interval
    """Mean of the control, latents weighted equally."""
    bits_fraction: Interval
    """Bits explained over bits at the base rate, sums over latents."""
    bits_fraction_shuffled: Interval
    """The same of the control."""
    precision: Interval
    """Mean over latents whose rule points anywhere on the held-out rows."""
    recall: Interval
    """Mean over scored latents."""


def score_part(
    evidence: PartEvidence,
    claims: Sequence[Claim] | Sequence[Description],
    settings: SemanticSettings | None = None,
) -> PartScores:
    """Score one claim per latent on the held-out rows, beside the shuffled control."""
    settings = settings or SemanticSettings()
    assert len(claims) == evidence.n_latents, (len(claims), evidence.n_latents)
    plain = [claim.claim if isinstance(claim, Description) else claim for claim in claims]
    table = compile_claims(plain, evidence.vocabulary.size)
    text = keyed_text(table, evidence.heldout_tokens, evidence.vocabulary)
    base = base_rates(evidence)
    alive = np.flatnonzero(base.count)
    true = latent_scores(table, base.rate, text, evidence)
    other = shuffled_rules(table, alive, base.rate, seed=settings.shuffle_seed)
    shuffled = latent_scores(other, base.rate, text, evidence)
    firings, n = evidence.heldout, evidence.n_latents
    count = np.bincount(firings.latent, minlength=n)
    mass = sum_by(firings.latent, firings.value, n)
    places_per_row = evidence.tokens.shape[1] - 1
    odds = np.log2(base.rate) - np.log2(1 - base.rate)
    row_bits = sum_by(firings.row, -odds[firings.latent], text.rows)
    return PartScores(
        part=evidence.part,
        true=true,
        shuffled=shuffled,
        count=count,
        mass=mass,
        alive=alive,
        row_bits_total=row_bits - places_per_row * np.log2(1 - base.rate).sum(),
        row_firings=np.bincount(firings.row, minlength=text.rows),
        places_per_row=places_per_row,
        summary=_summary(true, shuffled, count, mass, settings.bootstrap),
    )


def with_scores(descriptions: Sequence[Description], scores: PartScores) -> list[Description]:
    """The descriptions with their held-out scores filled in."""
    true = scores.true
    columns = [
        column.tolist()
        for column in (
            true.auroc,
            true.correlation,
            true.bits_explained,
            true.bits_total,
            true.precision,
            true.recall,
        )
    ]
    return [
        replace(description, scores=HeldoutScores(*values))
        for description, values in zip(descriptions, zip(*columns, strict=True), strict=True)
    ]


def shuffled_rules(
    table: RuleTable,
    alive: Int[np.ndarray, " alive"],
    base_rate: Float[np.ndarray, " latents"],
    *,
    seed: int,
) -> RuleTable:
    """The control: each latent alive with another one's rule, but its own base rate.

    Those alive stand in one random cycle, so that none keeps its own.
    """
    source = np.arange(table.n_latents)
    order = np.random.default_rng(seed).permutation(alive)
    source[order] = np.roll(order, 1)
    return table.shuffled(source, base_rate)


def latent_scores(
    table: RuleTable,
    base_rate: Float[np.ndarray, " latents"],
    text: Keyed,
    evidence: PartEvidence,
) -> LatentScores:
    """All scores of the rules of a part on its held-out rows."""
    firings, n = evidence.heldout, evidence.n_latents
    groups = group_places(table, text, firings)
    count = np.bincount(firings.latent, minlength=n)
    square = sum_by(firings.latent, firings.value**2, n)
    said = firing_bits(groups.fired, groups.total, groups.probability)
    bits_total = firing_bits(count, np.full(n, text.places), base_rate)
    pointed = groups.probability > table.otherwise_probability[groups.latent]
    hit = sum_by(groups.latent[pointed], groups.fired[pointed], n)
    area = sum_by(groups.latent[pointed], groups.total[pointed], n)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = hit / area, hit / count
    return LatentScores(
        auroc=grouped_auroc(groups.latent, groups.probability, groups.fired, groups.total, n),
        correlation=_correlation(groups, square, text.places),
        bits_explained=bits_total - sum_by(groups.latent, said, n),
        bits_total=bits_total,
        precision=precision,
        recall=recall,
        row_bits_explained=_row_bits(table, base_rate, text, groups, evidence),
    )


def grouped_auroc(
    latent: Int[np.ndarray, " groups"],
    score: Float[np.ndarray, " groups"],
    fired: Int[np.ndarray, " groups"],
    total: Int[np.ndarray, " groups"],
    n_latents: int,
) -> Float[np.ndarray, " latents"]:
    """Area under the ROC curve of each latent, ties counted half; exact (Mann-Whitney).

    nan for a latent that fires nowhere or everywhere.
    """
    order = np.lexsort((score, latent))
    latent, score = latent[order], score[order]
    first = np.r_[True, (latent[1:] != latent[:-1]) | (score[1:] != score[:-1])]
    begin = np.flatnonzero(first) if len(latent) else np.zeros(0, dtype=np.int64)
    if not len(begin):
        return np.full(n_latents, np.nan)
    positive = np.add.reduceat(fired[order], begin).astype(np.float64)
    negative = np.add.reduceat(total[order] - fired[order], begin).astype(np.float64)
    owner = latent[begin]
    positives = sum_by(owner, positive, n_latents)
    negatives = sum_by(owner, negative, n_latents)
    below = np.cumsum(negative) - negative - (np.cumsum(negatives) - negatives)[owner]
    wins = sum_by(owner, positive * (below + negative / 2), n_latents)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (positives * negatives)


def _correlation(
    groups: Groups, square: Float[np.ndarray, " latents"], places: int
) -> Float[np.ndarray, " latents"]:
    """Pearson correlation of each latent; 0 if constantly predicted, nan if it never fires."""
    n = len(square)
    expected = groups.probability * groups.activation
    mean = sum_by(groups.latent, groups.total * expected, n) / places
    centred = expected - mean[groups.latent]
    mass = sum_by(groups.latent, groups.value, n)
    covariance = sum_by(groups.latent, centred * groups.value, n)
    predicted = sum_by(groups.latent, groups.total * centred**2, n)
    true = square - mass**2 / places
    # Rounding leaves 1e-16 of a constant prediction's square; that is no variance.
    varies = predicted > 1e-12 * places * np.maximum(mean, 1e-30) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        result = np.where(varies, covariance / np.sqrt(predicted * true), 0.0)
    return np.where(true > 0, result, np.nan)


def _row_bits(
    table: RuleTable,
    base_rate: Float[np.ndarray, " latents"],
    text: Keyed,
    groups: Groups,
    evidence: PartEvidence,
) -> Float[np.ndarray, " rows"]:
    """Bits explained in each row: what silence costs less, plus what firings cost less."""
    otherwise = table.otherwise_probability
    members = table.member_latent
    silent = np.log2(1 - table.probability) - np.log2(1 - otherwise[members])
    saved = sum_by_place(table, text, silent).sum(axis=1)
    saved += (text.keys.shape[2] - 1) * (np.log2(1 - otherwise) - np.log2(1 - base_rate)).sum()
    odds = np.log2(groups.probability) - np.log2(1 - groups.probability)
    odds -= (np.log2(base_rate) - np.log2(1 - base_rate))[groups.latent]
    firings = evidence.heldout
    return saved + sum_by(firings.row, odds[groups.of_firing], text.rows)


def _summary(
    true: LatentScores,
    shuffled: LatentScores,
    count: Int[np.ndarray, " latents"],
    mass: Float[np.ndarray, " latents"],
    settings: BootstrapSettings,
) -> PartSummary:
    scored = count > 0
    equal = np.ones(len(count))
    total = true.bits_total
    columns = {
        "auroc": (true.auroc, equal),
        "auroc_by_mass": (true.auroc, mass),
        "auroc_shuffled": (shuffled.auroc, equal),
        "correlation": (true.correlation, equal),
        "correlation_by_mass": (true.correlation, mass),
        "correlation_shuffled": (shuffled.correlation, equal),
        "bits_fraction": (true.bits_explained / total, total),
        "bits_fraction_shuffled": (shuffled.bits_explained / total, total),
        "precision": (true.precision, equal),
        "recall": (true.recall, equal),
    }
    nothing = Interval(np.nan, np.nan, np.nan)
    if not scored.any():
        return PartSummary(scored=0, **dict.fromkeys(columns, nothing))
    value = np.stack([column for column, _ in columns.values()], axis=1)[scored]
    weight = np.stack([weights for _, weights in columns.values()], axis=1)[scored]
    weight = np.where(np.isfinite(value), weight, 0.0)
    found = intervals(np.where(weight > 0, value, 0.0) * weight, weight, settings)
    return PartSummary(scored=int(scored.sum()), **dict(zip(columns, found, strict=True)))


class SemanticAccuracy(BaseModel):
    """How much of the firing of a set of parts their descriptions explain; intervals over rows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    fraction: Interval
    """Bits explained over bits at the base rate."""
    bits_per_token: Interval
    """Bits explained per token, summed over the parts."""
    base_bits_per_token: Interval
    """Bits per token at the base rate, summed over the parts."""
    fraction_shuffled: Interval
    """Control: the fraction with descriptions permuted within each part."""


def semantic_accuracy(
    parts: Sequence[PartScores], settings: BootstrapSettings | None = None
) -> SemanticAccuracy:
    """Totals over parts scored on the same held-out rows."""
    explained = np.sum([part.true.row_bits_explained for part in parts], axis=0)
    shuffled = np.sum([part.shuffled.row_bits_explained for part in parts], axis=0)
    total = np.sum([part.row_bits_total for part in parts], axis=0)
    places = np.full(len(total), float(parts[0].places_per_row))
    return SemanticAccuracy(
        fraction=ratio_interval(explained, total, settings),
        bits_per_token=ratio_interval(explained, places, settings),
        base_bits_per_token=ratio_interval(total, places, settings),
        fraction_shuffled=ratio_interval(shuffled, total, settings),
    )


def pooled_mean(
    parts: Sequence[PartScores],
    score: Literal["auroc", "correlation"],
    settings: BootstrapSettings | None = None,
    *,
    shuffled: bool = False,
) -> Interval:
    """Mean of a score over the latents of all parts that fired on the rows, resampled by latent."""
    values = np.concatenate([getattr(p.shuffled if shuffled else p.true, score) for p in parts])
    fired = np.concatenate([part.count > 0 for part in parts])
    return mean_interval(values[fired & np.isfinite(values)], settings)
