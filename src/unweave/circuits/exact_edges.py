"""What every edge is worth, measured: one pass for each edge; the truth beside gradients."""

from collections.abc import Sequence

import torch

from unweave.circuits.components import Scores
from unweave.circuits.contrasts import Contrast, Metric, in_pairs, logit_difference
from unweave.circuits.edge_attribution import AttributionSettings
from unweave.circuits.running import COUNTERFACTUAL, Elsewhere, run_circuit
from unweave.circuits.wired import Wired
from unweave.progress import QUIET, Progress


@torch.no_grad()
def exact_edge_scores(
    wired: Wired,
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    elsewhere: Elsewhere = COUNTERFACTUAL,
    settings: AttributionSettings | None = None,
    progress: Progress = QUIET,
) -> Scores:
    """What the metric loses, in the mean over contrasts, when one edge is not kept.

    There are no steps to take: of the settings only the batch counts.
    """
    graph, batch = wired.graph, (settings or AttributionSettings()).batch
    scores = torch.zeros(len(graph.sources), len(graph.targets))
    edges = graph.mask.nonzero().tolist()
    batches = -(-len(contrasts) // batch)
    with progress.task("exact", total=batches * len(edges), unit="edges") as advance:
        for pairs in in_pairs(contrasts, batch):
            other = elsewhere.outputs(wired, pairs)
            whole = metric(run_circuit(wired, pairs, graph.mask, other), pairs).sum()
            for source, target in edges:
                circuit = graph.mask.clone()
                circuit[source, target] = False
                left = metric(run_circuit(wired, pairs, circuit, other), pairs).sum()
                scores[source, target] += (whole - left).item()
                advance(1)
    return scores / len(contrasts)
