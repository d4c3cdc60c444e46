"""What the scores of all parts together say."""

from collections.abc import Sequence

import numpy as np

from unweave.pipeline.results import SemanticResult, interval
from unweave.validate.length import VALUE_BITS, mathematical_length
from unweave.validate.semantic import PartScores, pooled_mean, semantic_accuracy


def summarise(scores: Sequence[PartScores], bits: float, described: int) -> SemanticResult:
    """Totals over the parts.

    Means of AUROC and correlation are over all latents that fired on the held-out rows, resampled
    by latent; bits are sums over parts, resampled by row.
    """
    fired = np.concatenate([part.count > 0 for part in scores])
    accuracy = semantic_accuracy(scores)
    firings = sum(int(part.row_firings.sum()) for part in scores)
    places = len(scores[0].row_firings) * scores[0].places_per_row

    return SemanticResult(
        described=described,
        scored=int(fired.sum()),
        description_bits=bits,
        active_per_token=firings / places,
        code_bits=interval(mathematical_length(scores, value_bits=VALUE_BITS)),
        bits_fraction=interval(accuracy.fraction),
        bits_fraction_shuffled=interval(accuracy.fraction_shuffled),
        bits_per_token=interval(accuracy.bits_per_token),
        base_bits_per_token=interval(accuracy.base_bits_per_token),
        auroc=interval(pooled_mean(scores, "auroc"), nothing=0.5),
        auroc_shuffled=interval(pooled_mean(scores, "auroc", shuffled=True), nothing=0.5),
        correlation=interval(pooled_mean(scores, "correlation")),
        correlation_shuffled=interval(pooled_mean(scores, "correlation", shuffled=True)),
    )
