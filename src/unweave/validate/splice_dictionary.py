"""What a network loses when dictionaries stand in it, on held-out rows.

Cross-entropy, KL and agreement of the spliced network with the original; loss recovered against
two baselines that are always named, because against zero-ablation almost anything looks good; and
each dictionary's fidelity inside the running network. Position 0 is left as it was throughout.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.metrics import Fidelity, FidelitySums, fidelity_of, fidelity_sums
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.subject.running import Replacement, Run
from unweave.training.objectives.splice import Splice
from unweave.validate.bootstrap import BootstrapSettings, Interval, mean_interval, ratio_interval
from unweave.validate.placed import judged
from unweave.validate.splice import RowScores, compare_logits, stack


class Inside(NamedTuple):
    """One dictionary in the running network, in its scaled units."""

    fidelity: Fidelity
    """L0, alive, FVU and the rest, against what the network itself computes at the sites."""
    fvu_normalised: float
    """FVU once each target and output is centred and brought to norm sqrt(width): what a network
    that norms its stream can see. End-to-end dictionaries shrink the stream, and their plain FVU
    exceeds one without harm (Braun et al. 2024)."""


class SpliceReport(NamedTuple):
    """Everything about one set of dictionaries in the network; intervals are over rows."""

    ce_original: Interval
    """Cross-entropy of the subject, nats per token."""
    ce_increase: Interval
    """What the dictionaries add to it."""
    kl: Interval
    """KL(original || spliced), nats per token."""
    top1_agreement: Interval
    """Share of positions where both put the same token first."""
    ce_increase_zero: Interval
    """What zeros in the place of what the dictionaries write add to the cross-entropy."""
    ce_increase_mean: Interval
    """The same for the sites' means."""
    recovered_zero: Interval
    """Loss recovered relative to zero-ablation: 1 - CE increase / CE increase of zeros."""
    recovered_mean: Interval
    """Loss recovered relative to mean-ablation."""
    inside: dict[str, Inside]
    """By the name of the dictionary."""
    downstream: dict[str, float]
    """Mean over vectors of |spliced - original|^2 / |original|^2 at each later site asked for."""


@torch.no_grad()
def site_means(
    subject: Subject, sites: Sequence[str], rows: Int[Tensor, "rows pos"], *, rows_at_once: int = 8
) -> dict[str, Float[Tensor, " width"]]:
    """Mean vector of each site over all positions but the first."""
    sums = dict.fromkeys(sites, torch.zeros((), dtype=torch.float64))
    for group in rows.split(rows_at_once):
        found = subject.run(group, capture=list(sites), logits=False).sites
        for site in sites:
            vectors = found[site][:, 1:].flatten(2).flatten(0, 1)
            sums[site] = sums[site] + vectors.double().sum(0)
    count = rows[:, 1:].numel()
    return {site: (total / count).float() for site, total in sums.items()}


@torch.no_grad()
def splice_reports(
    subject: Subject,
    sets: Mapping[str, Mapping[str, Dictionary]],
    rows: Int[Tensor, "rows pos"],
    *,
    means: Mapping[str, Float[Tensor, " width"]] | None = None,
    downstream_sites: Sequence[str] = (),
    rows_at_once: int = 8,
    bootstrap: BootstrapSettings | None = None,
    progress: Progress = QUIET,
) -> dict[str, SpliceReport]:
    """Run the subject without and with each set of dictionaries and with both ablations, on `rows`.

    The original runs once for all sets, the ablations once for all that write the same sites.
    `means` are those of the written sites on training text (`site_means`); without them the rows'
    own are taken. Dictionaries are measured as after training: thresholds in the place of batches.
    """
    written = {
        name: tuple(dict.fromkeys(p.site for d in dictionaries.values() for p in d.spec.writes))
        for name, dictionaries in sets.items()
    }
    sites = list(dict.fromkeys(site for found in written.values() for site in found))
    means = means or site_means(subject, sites, rows, rows_at_once=rows_at_once)
    tallies = {name: _Tally() for name in sets}
    total = rows.numel() * len(sets)
    with (
        judged(d for each in sets.values() for d in each.values()),
        progress.task("Splicing", total=total, unit="tokens") as advance,
    ):
        for group in rows.split(rows_at_once):
            original = subject.run(group, capture=list(downstream_sites))
            ablated = {
                at: [_scores(original, subject.run(group, replace=ablation(at, m)), group)
                     for m in ({}, means)]
                for at in set(written.values())
            }  # fmt: skip
            for name, dictionaries in sets.items():
                splice = Splice(dictionaries)
                spliced = splice.run(subject, group, capture=downstream_sites)
                tallies[name].note(splice, original.sites, spliced.sites)
                scores = [_scores(original, spliced, group), *ablated[written[name]]]
                tallies[name].scores.append(scores)
                advance(group.numel())
    return {name: tally.report(bootstrap) for name, tally in tallies.items()}


def _scores(original: Run, changed: Run, rows: Tensor) -> RowScores:
    assert original.logits is not None
    assert changed.logits is not None
    return compare_logits(original.logits, changed.logits, rows)


def ablation(
    sites: Sequence[str], means: Mapping[str, Float[Tensor, " width"]]
) -> dict[str, Replacement]:
    """Replace sites by their means, or by zeros where no mean is given; position 0 stays."""

    def to(site: str) -> Replacement:
        def visit(tensor: Tensor) -> Tensor:
            new = torch.zeros_like(tensor)
            if site in means:
                new += means[site].to(tensor).view(tensor.shape[2:])
            new[:, 0] = tensor[:, 0]
            return new

        return visit

    return {site: to(site) for site in sites}


class _Tally:
    """Sums over the groups of rows."""

    def __init__(self) -> None:
        self.scores: list[list[RowScores]] = []
        self._plain: dict[str, FidelitySums] = {}
        self._normal: dict[str, FidelitySums] = {}
        self._gaps: dict[str, list[Tensor]] = {}

    def note(
        self, splice: Splice, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        """Count one group of rows."""
        for name, seen in splice.seen.items():
            code, y, y_hat = seen.passed.sparse_code, seen.y, seen.passed.y
            plain = fidelity_sums(y, y_hat, code)
            normal = fidelity_sums(_normalised(y), _normalised(y_hat), code)
            self._plain[name] = self._plain[name] + plain if name in self._plain else plain
            self._normal[name] = self._normal[name] + normal if name in self._normal else normal
        for site, was in before.items():
            old, new = was[:, 1:].float(), after[site][:, 1:].float()
            gap = (new - old).square().sum(-1) / old.square().sum(-1).clamp_min(1e-12)
            self._gaps.setdefault(site, []).append(gap.flatten())

    def report(self, settings: BootstrapSettings | None) -> SpliceReport:
        """Everything counted so far."""
        mine, zeros, means = (stack(list(scores)) for scores in zip(*self.scores, strict=True))
        zero, mean = zeros.ce_increase, means.ce_increase
        return SpliceReport(
            ce_original=mean_interval(mine.ce_original, settings),
            ce_increase=mean_interval(mine.ce_increase, settings),
            kl=mean_interval(mine.kl, settings),
            top1_agreement=mean_interval(mine.top1_agreement, settings),
            ce_increase_zero=mean_interval(zero, settings),
            ce_increase_mean=mean_interval(mean, settings),
            recovered_zero=_recovered(mine.ce_increase, zero, settings),
            recovered_mean=_recovered(mine.ce_increase, mean, settings),
            inside={
                name: Inside(fidelity_of(sums), fidelity_of(self._normal[name]).fvu)
                for name, sums in self._plain.items()
            },
            downstream={site: torch.cat(gaps).mean().item() for site, gaps in self._gaps.items()},
        )


def _recovered(
    mine: Float[np.ndarray, " rows"],
    ablated: Float[np.ndarray, " rows"],
    settings: BootstrapSettings | None,
) -> Interval:
    return ratio_interval(ablated - mine, ablated, settings)


def _normalised(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    centred = rows - rows.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
