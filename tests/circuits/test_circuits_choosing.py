"""Circuits of a given size from scores of edges."""

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import tiny_llama

from unweave.circuits.choosing import (
    SIZES,
    from_nodes,
    greedy_circuit,
    pruned,
    random_scores,
    tied,
    top_circuit,
)
from unweave.circuits.components import Graph
from unweave.circuits.running import circuit_metrics
from unweave.circuits.wired import Wired
from unweave.errors import UserError

GRAPH = Graph(2, 2, 1)


def circuit(*edges: tuple[str, str]) -> torch.Tensor:
    found = torch.zeros_like(GRAPH.mask)
    for source, target in edges:
        found[GRAPH.sources.index(source), GRAPH.targets.index(target)] = True
    assert not (found & ~GRAPH.mask).any()
    return found


def test_the_first_edges_by_score_fill_the_size() -> None:
    scores = torch.zeros(GRAPH.mask.shape)
    scores[circuit(("embed", "blocks.0.mlp"))] = -3.0
    scores[circuit(("embed", "logits"))] = 2.0
    scores[circuit(("embed", "blocks.1.kv.0.k"))] = 1.0
    share = 1.5 / GRAPH.n_weighted
    assert top_circuit(GRAPH, scores, share).equal(circuit(("embed", "blocks.0.mlp")))
    signed = top_circuit(GRAPH, scores, share, magnitude=False)
    assert signed.equal(circuit(("embed", "logits")))
    # A key that two heads share is two edges, so three have room for one other and not two.
    assert top_circuit(GRAPH, scores, 3.5 / GRAPH.n_weighted).sum() == 2
    assert top_circuit(GRAPH, scores, 4.5 / GRAPH.n_weighted).sum() == 3


@pytest.mark.parametrize("choose", [top_circuit, greedy_circuit])
def test_sizes_hold_and_all_is_all(choose) -> None:
    graph = Graph(3, 4, 2)
    scores = random_scores(graph, seed=0) - 0.5 * graph.mask
    before = torch.zeros_like(graph.mask)
    for size in SIZES:
        found = choose(graph, scores, size)
        assert graph.weighted(found) <= size * graph.n_weighted
        assert not (found & ~graph.mask).any()
        before = found
    assert before.equal(graph.mask)


def test_greedy_circuits_always_lead_to_the_logits() -> None:
    graph = Graph(3, 4, 2)
    scores = random_scores(graph, seed=1)
    found = greedy_circuit(graph, scores, 0.1)
    leads = found.any(1).float() @ graph.depends.float() > 0
    leads[-1] = True
    assert found.any()
    assert not (found & ~leads).any()
    plain = top_circuit(graph, scores, 0.1)
    assert (plain & ~(plain.any(1).float() @ graph.depends.float() > 0)).any()


def test_pruning_takes_what_leads_nowhere_and_changes_no_number() -> None:
    kept = circuit(("embed", "blocks.0.mlp"), ("blocks.0.mlp", "logits"))
    loose = circuit(("embed", "blocks.1.head.0.q"), ("blocks.0.head.1", "logits"))
    assert pruned(GRAPH, kept | loose).equal(kept)
    wired = Wired(tiny_llama())
    some = top_circuit(wired.graph, random_scores(wired.graph, seed=3), 0.15)
    less = pruned(wired.graph, some)
    assert less.sum() < some.sum()
    both = circuit_metrics(wired, contrasts(4, 64), [some, less])
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-5)


def test_queries_keys_and_values_can_be_taken_together() -> None:
    scores = torch.ones(GRAPH.mask.shape) * GRAPH.mask
    found = GRAPH.named(tied(GRAPH, scores))
    assert found["embed", "blocks.1.head.0.q"] == found["embed", "blocks.1.kv.0.v"] == 4
    assert found["embed", "blocks.1.mlp"] == 1


def test_scores_of_components_go_to_every_edge_that_leaves_them() -> None:
    found = from_nodes(GRAPH, list(range(7)))
    assert GRAPH.named(found)["blocks.0.mlp", "logits"] == 3
    assert not found[~GRAPH.mask].any()


def test_what_makes_no_sense_is_said() -> None:
    scores = random_scores(GRAPH, seed=0)
    with pytest.raises(UserError, match=r"1\.5"):
        top_circuit(GRAPH, scores, 1.5)
    with pytest.raises(UserError, match="one for each source"):
        top_circuit(GRAPH, scores[:2], 0.5)
