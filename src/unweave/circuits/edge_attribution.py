"""What every edge is worth, to first order, from a few passes backward.

Edge attribution patching (Syed et al. 2023, 2310.10348): the effect of an edge from s to t is

    sum over positions of (s on the clean prompt - s elsewhere) . (d metric / d input of t)

so that an edge that helps has a positive score. With integrated gradients (EAP-IG, Hanna et al.
2024, 2403.17806) the gradient is a mean over points between the two: of the network's input
(`inputs`, all edges from the same passes), or of the source's own output (`activations`, passes
for each source). The score of a component (node attribution patching) is the sum over the edges
that leave it.

Scores are products of [sources, n] and [n, targets] matrices, n = batch x positions x d: no tensor
of all edges times d is ever made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.circuits.components import Graph, Readers, Scores
from unweave.circuits.contrasts import Contrast, Metric, Pairs, in_pairs, logit_difference
from unweave.circuits.running import COUNTERFACTUAL, Elsewhere
from unweave.circuits.wired import NOTHING, Wired
from unweave.progress import QUIET, Progress
from unweave.subject import Replacement


class AttributionSettings(BaseModel):
    """Settings of attribution."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: PositiveInt = 5
    """Points on the way from elsewhere to clean: k / steps for k = 1 .. steps, as MIB has them."""
    batch: PositiveInt = 8
    """Contrasts run together: memory grows with it, scores do not depend on it."""


class _Probed:
    """Everything reads the stream, and the input of each target is kept for its gradient."""

    listens = False

    def __init__(self) -> None:
        self.inputs: list[tuple[Readers, Tensor]] = []

    def wrote(self, sources: slice, outputs: Tensor) -> None:
        """Nothing is kept."""

    def reads(self, readers: Readers, stream: Tensor) -> Tensor:
        """See `Rule.reads`."""
        if not stream.requires_grad:
            stream = stream.detach().requires_grad_()
        width = readers.targets.stop - readers.targets.start
        seen = stream[:, :, None].expand(-1, -1, width, -1)
        self.inputs.append((readers, seen))
        return seen


Gradients = list[tuple[Readers, Float[Tensor, "_ _ _ _"]]]
"""[batch, pos, targets, d] for the targets of each of the readers."""


def _gradients(
    wired: Wired, pairs: Pairs, metric: Metric, replace: Mapping[str, Replacement] = NOTHING
) -> Gradients:
    """The metric's gradient at the input of every target, on the clean prompts."""
    rule = _Probed()
    with torch.enable_grad():
        total = metric(wired.run(pairs.clean, rule, replace=replace), pairs).sum()
        found = torch.autograd.grad(total, [seen for _, seen in rule.inputs])
    return [(readers, slope) for (readers, _), slope in zip(rule.inputs, found, strict=True)]


def _mean(parts: Iterator[Gradients], count: int) -> Gradients:
    total = next(parts)
    for more in parts:
        for (_, sum_), (_, slope) in zip(total, more, strict=True):
            sum_ += slope
    return [(readers, sum_ / count) for readers, sum_ in total]


def _products(
    graph: Graph, change: Float[Tensor, "batch pos sources d"], slopes: Gradients
) -> Scores:
    """Change of each source times gradient at each target after it."""
    rows = change.permute(2, 0, 1, 3).flatten(1)
    scores = torch.zeros(len(graph.sources), len(graph.targets), device=rows.device)
    for readers, slope in slopes:
        columns = slope.permute(2, 0, 1, 3).flatten(1)
        scores[: readers.reach, readers.targets] = rows[: readers.reach] @ columns.T
    return scores.cpu()


Attribution = Callable[[Wired, Pairs, Metric, Float[Tensor, "batch pos sources d"]], Scores]
"""Summed scores of one batch, given what sources write elsewhere."""


def edge_scores(
    wired: Wired,
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    elsewhere: Elsewhere = COUNTERFACTUAL,
    settings: AttributionSettings | None = None,
    progress: Progress = QUIET,
) -> Scores:
    """Edge attribution patching: mean over contrasts, positive where an edge helps."""
    return _over(wired, contrasts, metric, elsewhere, settings, progress, "eap", _plain)


def integrated_edge_scores(
    wired: Wired,
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    elsewhere: Elsewhere = COUNTERFACTUAL,
    settings: AttributionSettings | None = None,
    progress: Progress = QUIET,
) -> Scores:
    """EAP-IG (inputs): the gradient is a mean over inputs between elsewhere and clean."""
    steps = (settings or AttributionSettings()).steps

    def attribute(wired: Wired, pairs: Pairs, metric: Metric, other: Tensor) -> Scores:
        clean = wired.outputs(pairs.clean)
        first = slice(0, 1)
        slopes = _between(wired, pairs, metric, clean, other, first, "blocks.0.resid_pre", steps)
        return _products(wired.graph, clean - other, slopes)

    return _over(wired, contrasts, metric, elsewhere, settings, progress, "eap-ig", attribute)


def activation_edge_scores(
    wired: Wired,
    contrasts: Sequence[Contrast],
    *,
    metric: Metric = logit_difference,
    elsewhere: Elsewhere = COUNTERFACTUAL,
    settings: AttributionSettings | None = None,
    progress: Progress = QUIET,
) -> Scores:
    """EAP-IG (activations): for each block's heads or MLP, a mean over outputs of just those.

    Two times as many passes a step as there are blocks.
    """
    steps = (settings or AttributionSettings()).steps

    def attribute(wired: Wired, pairs: Pairs, metric: Metric, other: Tensor) -> Scores:
        clean, graph = wired.outputs(pairs.clean), wired.graph
        scores = torch.zeros(len(graph.sources), len(graph.targets))
        for sources, site in _written_sites(graph):
            slopes = _between(wired, pairs, metric, clean, other, sources, site, steps)
            scores[sources] = _products(graph, clean - other, slopes)[sources]
        return scores

    title = "eap-ig activations"
    return _over(wired, contrasts, metric, elsewhere, settings, progress, title, attribute)


def _written_sites(graph: Graph) -> Iterator[tuple[slice, str]]:
    """Sources with a site where adding to what flows is adding to what they write."""
    yield slice(0, 1), "blocks.0.resid_pre"
    sites = ("attn.out", "mlp.out") if graph.parallel else ("resid_mid", "resid_post")
    for layer in range(graph.n_layers):
        yield graph.heads(layer), f"blocks.{layer}.{sites[0]}"
        yield graph.mlp(layer), f"blocks.{layer}.{sites[1]}"


def _between(
    wired: Wired,
    pairs: Pairs,
    metric: Metric,
    clean: Tensor,
    other: Tensor,
    sources: slice,
    site: str,
    steps: int,
) -> Gradients:
    """Mean gradients while some sources write something between elsewhere and clean.

    Only the sum of sources at one site matters to what comes after them.
    """
    change = (other - clean)[:, :, sources].sum(2)

    def at(k: int) -> Gradients:
        moved = (1 - k / steps) * change
        return _gradients(wired, pairs, metric, {site: lambda tensor: tensor + moved})

    return _mean((at(k) for k in range(1, steps + 1)), steps)


def _plain(wired: Wired, pairs: Pairs, metric: Metric, other: Tensor) -> Scores:
    change = wired.outputs(pairs.clean) - other
    return _products(wired.graph, change, _gradients(wired, pairs, metric))


def _over(
    wired: Wired,
    contrasts: Sequence[Contrast],
    metric: Metric,
    elsewhere: Elsewhere,
    settings: AttributionSettings | None,
    progress: Progress,
    title: str,
    attribute: Attribution,
) -> Scores:
    batch = (settings or AttributionSettings()).batch
    total = torch.zeros(len(wired.graph.sources), len(wired.graph.targets))
    with progress.task(title, total=len(contrasts), unit="prompts") as advance:
        for pairs in in_pairs(contrasts, batch):
            total += attribute(wired, pairs, metric, elsewhere.outputs(wired, pairs))
            advance(len(pairs.which))
    return total / len(contrasts)


def node_scores(scores: Scores) -> Float[Tensor, " sources"]:
    """Node attribution patching: what a source is worth is the sum over its outgoing edges.

    Exact, since the gradient at what it writes is the sum of those at what reads it.
    """
    return scores.sum(1)
