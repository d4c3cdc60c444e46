"""What trained dictionaries are worth on held-out text, as JSON."""

import math
from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor

from unweave.artifact.atomic import Json
from unweave.dictionaries.dictionary import Dictionary
from unweave.progress import Progress
from unweave.subject import Subject
from unweave.validate.bootstrap import Interval
from unweave.validate.splice_dictionary import Inside, SpliceReport, site_means, splice_reports


def heldout_scores(
    subject: Subject,
    sets: Mapping[str, Mapping[str, Dictionary]],
    heldout: Int[Tensor, "heldout_rows pos"],
    train: Int[Tensor, "train_rows pos"],
    *,
    progress: Progress,
) -> Json:
    """`scores.json`: for every set the network with it in place, and each dictionary's fidelity.

    Loss recovered stands next to the rise of the cross-entropy in nats and KL, never alone; means
    for the ablation are those of training text.
    """
    written = [p.site for ds in sets.values() for d in ds.values() for p in d.spec.writes]
    means = site_means(subject, list(dict.fromkeys(written)), train[: len(heldout)])
    reports = splice_reports(subject, sets, heldout, means=means, progress=progress)
    return {
        "tokens": heldout.numel(),
        "trained": {name: _report(report) for name, report in reports.items()},
    }


def _report(report: SpliceReport) -> Json:
    intervals = {
        name: _interval(value)
        for name, value in report._asdict().items()
        if isinstance(value, Interval)
    }
    inside = {name: _inside(found) for name, found in report.inside.items()}
    return {**intervals, "dictionaries": inside}


def _inside(found: Inside) -> Json:
    fidelity = {
        name: value if isinstance(value, list) else _number(value)
        for name, value in found.fidelity._asdict().items()
    }
    return {**fidelity, "fvu_normalised": _number(found.fvu_normalised)}


def _interval(found: Interval) -> Json:
    return {name: _number(value) for name, value in found._asdict().items()}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
