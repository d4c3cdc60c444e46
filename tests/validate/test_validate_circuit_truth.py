"""Orders of edges beside known circuits: small ones by hand, then compiled programs."""

import pytest
import torch
from tiny_subject import tiny_llama

from unweave.circuits.edge_attribution import AttributionSettings
from unweave.circuits.exact_edges import exact_edge_scores
from unweave.circuits.wired import Wired
from unweave.errors import UserError
from unweave.validate.circuit_truth import (
    at_k,
    item_auroc,
    measure_circuit,
    merged,
    node_scores,
)
from unweave.validate.protocols.protocol import Refused
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.contrasts import one_embedding, program_contrasts
from unweave.validate.worlds.programs.edge_scores import (
    attention_edges,
    gradient_edges,
    patched_edges,
    random_edges,
    weight_edges,
    written,
)
from unweave.validate.worlds.programs.layout import Edge
from unweave.validate.worlds.programs.library import distractor, program


def test_the_area_is_what_one_counts_by_hand() -> None:
    scores = {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0}
    assert item_auroc(scores, {"a", "b"}) == 1.0
    assert item_auroc(scores, {"c", "d"}) == 0.0
    assert item_auroc(scores, {"a", "d"}) == 0.5
    assert item_auroc(scores, {"a", "c"}) == 0.75  # 2 + 1 of 4 pairs
    tied = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0}
    assert item_auroc(tied, {"a", "b"}) == (3 + 1 + 2 * 0.5) / 6
    assert item_auroc(dict.fromkeys("abc", 7.0), {"b"}) == 0.5
    assert item_auroc({"a": float("inf"), "b": 1.0}, {"a"}) == 1.0


def test_a_tie_on_the_border_counts_by_its_share() -> None:
    tied = {"a": 2.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.0}
    assert at_k(tied, {"a", "b"}, 1) == (1, 1.0, 0.5)
    assert at_k(tied, {"a", "b"}, 2) == (2, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert at_k(tied, {"a", "b"}, 5) == (5, 0.4, 1.0)
    score = measure_circuit(tied, {"a", "b"})
    assert score.precision == pytest.approx(2 / 3)
    assert (score.edges, score.true, score.chance) == (5, 2, 0.4)


def test_what_cannot_be_judged_is_refused_with_its_reason() -> None:
    scores = {"a": 1.0, "b": 2.0}
    with pytest.raises(Refused, match="none is untrue"):
        item_auroc(scores, {"a", "b"})
    with pytest.raises(Refused, match="none is true"):
        measure_circuit(scores, set())
    with pytest.raises(Refused, match="nothing to recall"):
        at_k(scores, set(), 1)
    with pytest.raises(UserError, match="z is part of the true circuit"):
        item_auroc(scores, {"a", "z"})
    with pytest.raises(UserError, match="score of b is not a number"):
        item_auroc({"a": 1.0, "b": float("nan")}, {"a"})
    with pytest.raises(UserError, match="first 3 of 2"):
        at_k(scores, {"a"}, 3)


def test_edges_become_nodes_and_whole_heads() -> None:
    edges = {("embed", "blocks.0.head.1.q"): 1.0, ("embed", "blocks.0.head.1.k"): 3.0}
    edges |= {("positions", "blocks.0.head.1.v"): 2.0, ("blocks.0.head.1", "logits"): 0.5}
    assert node_scores(edges) == {"embed": 3.0, "positions": 2.0, "blocks.0.head.1": 0.5}
    assert merged(edges) == {
        ("embed", "blocks.0.head.1"): 3.0,
        ("positions", "blocks.0.head.1"): 2.0,
        ("blocks.0.head.1", "logits"): 0.5,
    }


@pytest.mark.parametrize("name", ["previous token", "induction", "sort"])
def test_patching_finds_the_program_and_looking_at_attention_does_not(name: str) -> None:
    usual = program(name, words="abc", length=4)
    compiled = compile_program(
        usual, distractor("histogram", usual), settings=CompileSettings(rotation=0)
    )
    groups = [usual.draw(16, length=n, seed=n) for n in (3, 4)]
    patched = patched_edges(compiled.subject, groups, seed=0)
    assert measure_circuit(patched, compiled.edges).auroc > 0.99
    assert item_auroc(node_scores(patched), compiled.true_nodes) > 0.99
    looked = attention_edges(compiled.subject, groups)
    assert item_auroc(looked, compiled.edges) < 0.9
    drawn = [item_auroc(random_edges(compiled.subject, seed=s), compiled.edges) for s in range(200)]
    assert torch.tensor(drawn).mean().item() == pytest.approx(0.5, abs=0.05)


def test_the_gradient_is_right_where_the_network_is_linear() -> None:
    usual = program("previous token", words="abc", length=4)
    compiled = compile_program(usual, distractor("histogram", usual))
    groups = [usual.draw(16, length=4, seed=0)]
    slope = gradient_edges(compiled.subject, groups, seed=0)
    # Of the four true edges the value's and the logits' are linear; attention is as good as hard.
    value, logits = Edge("embed", "blocks.0.head.0.v"), Edge("blocks.0.head.0", "logits")
    rest = [score for edge, score in slope.items() if edge not in (value, logits)]
    assert min(slope[value], slope[logits]) > 1.0
    assert max(rest) < 0.01
    weights = weight_edges(compiled.subject)
    # The distractor's weights are as large as the program's.
    assert weights[Edge("embed", "blocks.0.head.1.q")] > weights[value]
    assert item_auroc(weights, compiled.edges) < 1.0


def test_only_the_edge_that_is_patched_changes() -> None:
    usual = program("induction", words="abc", length=4)
    compiled = compile_program(usual, distractor("histogram", usual))
    assert compiled.subject.n_heads == 2
    rows = usual.all_rows(4)
    parts = written(compiled.subject, rows)
    final = compiled.subject.run(rows, capture=["final"], logits=False).sites["final"]
    torch.testing.assert_close(sum(parts.values()), final)
    scores = patched_edges(compiled.subject, [rows], seed=0)
    assert {edge for edge, score in scores.items() if score > 1e-3} == set(compiled.edges)


def test_pairs_of_prompts_do_not_see_what_carries_only_places() -> None:
    usual = program("previous token", words="abc", length=4)
    compiled = compile_program(usual, distractor("histogram", usual))
    pairs = program_contrasts(compiled, 16, length=4, seed=0)
    for pair in pairs:
        both = torch.tensor([pair.clean, pair.corrupt])
        assert usual.answers(both)[:, -1].tolist() == [*pair.right, *pair.wrong]
        assert pair.right != pair.wrong
    wired = Wired(compiled.subject)
    exact = exact_edge_scores(wired, pairs, settings=AttributionSettings(batch=16))
    scores = wired.graph.named(exact)
    truth = one_embedding(compiled.edges)
    seen = {edge for edge in truth if abs(scores[edge]) > 1e-4}
    assert truth - seen == {("embed", "blocks.0.head.0.q"), ("embed", "blocks.0.head.0.k")}
    assert max(abs(score) for edge, score in scores.items() if edge not in truth) < 1e-4
    single = program("fraction of x", words="x", length=3)
    with pytest.raises(UserError, match="same answer at the end"):
        program_contrasts(compile_program(single), 2, length=3, seed=0)


def test_networks_with_norms_are_refused() -> None:
    with pytest.raises(UserError, match="no norms"):
        written(tiny_llama(), torch.ones(1, 4, dtype=torch.long))
