"""From scores of edges to circuits of a given size, as MIB chooses them.

Sizes are shares of all edges, an edge into shared keys or values counting once for each query
head that uses them (`Graph.weight`). By `magnitude` edges are ordered by the absolute value of the
score, otherwise those that help most come first.
"""

import heapq
from collections.abc import Sequence

import torch

from unweave.circuits.components import Circuit, Graph, Scores
from unweave.errors import UserError

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of edges at which MIB measures."""


def top_circuit(graph: Graph, scores: Scores, share: float, *, magnitude: bool = True) -> Circuit:
    """The first edges by score, up to a share of all."""
    allowed = _budget(graph, share)
    worth = _worth(graph, scores, magnitude).flatten()
    order = worth.argsort(descending=True, stable=True)[: graph.n_edges]
    weights = graph.weight.expand(len(graph.sources), -1).flatten()[order]
    circuit = torch.zeros_like(graph.mask).flatten()
    circuit[order[weights.cumsum(0) <= allowed]] = True
    return circuit.view_as(graph.mask)


def greedy_circuit(
    graph: Graph, scores: Scores, share: float, *, magnitude: bool = True
) -> Circuit:
    """The best edge, again and again, of those that lead to what is already in the circuit.

    It begins at the logits, so that every edge of the circuit has a way to them.
    """
    allowed = _budget(graph, share)
    worth, weight = _worth(graph, scores, magnitude).tolist(), graph.weight.tolist()
    circuit, heap = torch.zeros_like(graph.mask), []  # type: ignore[var-annotated]
    reached = {len(graph.targets) - 1}

    def offer(target: int) -> None:
        for source in graph.mask[:, target].nonzero()[:, 0].tolist():
            heapq.heappush(heap, (-worth[source][target], source, target))

    offer(len(graph.targets) - 1)
    while heap:
        _, source, target = heapq.heappop(heap)
        if weight[target] > allowed:
            break
        allowed -= weight[target]
        circuit[source, target] = True
        for more in graph.depends[source].nonzero()[:, 0].tolist():
            if more not in reached:
                reached.add(more)
                offer(more)
    return circuit


def pruned(graph: Graph, circuit: Circuit) -> Circuit:
    """A circuit without the edges that lead nowhere or come from nowhere.

    An edge counts if there is a way over kept edges from the embedding to its source and from its
    target to the logits. Running either gives the same: what nothing of the clean prompt reaches
    writes what it writes elsewhere.
    """
    circuit, depends = circuit & graph.mask, graph.depends.float()
    while True:
        fed = (depends @ circuit.any(0).float()) > 0
        fed[0] = True
        read = circuit.any(1).float() @ depends > 0
        read[-1] = True
        left = circuit & fed[:, None] & read[None]
        if torch.equal(left, circuit):
            return circuit
        circuit = left


def tied(graph: Graph, scores: Scores) -> Scores:
    """Scores with edges into queries, keys and values of the same heads taken together.

    Each gets the sum over them, so that a circuit keeps all or none of them (but for ties at its
    border). With grouped queries the unit is the group.
    """
    units: dict[str, list[int]] = {}
    for at, target in enumerate(graph.targets):
        if target.endswith((".q", ".k", ".v")):
            _, block, _, head, part = target.split(".")
            group = int(head) // graph.group if part == "q" else int(head)
            units.setdefault(f"{block} {group}", []).append(at)
    found = scores.clone()
    for members in units.values():
        found[:, members] = scores[:, members].sum(1, keepdim=True)
    return found


def random_scores(graph: Graph, *, seed: int) -> Scores:
    """A number drawn for each edge: the control."""
    drawn = torch.rand(graph.mask.shape, generator=torch.Generator().manual_seed(seed))
    return drawn * graph.mask


def from_nodes(graph: Graph, nodes: Sequence[float]) -> Scores:
    """Scores of edges from scores of sources: every edge that leaves a source has its score."""
    return torch.tensor(nodes, dtype=torch.float32)[:, None] * graph.mask


def _budget(graph: Graph, share: float) -> int:
    if not 0 <= share <= 1:
        raise UserError(f"A circuit's size is a share of all edges, between 0 and 1, not {share}")
    return int(share * graph.n_weighted)


def _worth(graph: Graph, scores: Scores, magnitude: bool) -> Scores:
    if scores.shape != graph.mask.shape or scores.isnan().any():
        raise UserError(
            f"Scores of edges are numbers {tuple(graph.mask.shape)}, one for each source and"
            f" target, not {tuple(scores.shape)}"
        )
    return (scores.abs() if magnitude else scores).masked_fill(~graph.mask, -torch.inf)
