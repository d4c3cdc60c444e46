"""Circuits in random networks of every family: all edges are the network, none is the other run."""

import pytest
import torch
from tiny_contrasts import contrasts
from tiny_subject import FAMILIES, family_subject, tiny_llama

from unweave.circuits.choosing import random_scores, top_circuit
from unweave.circuits.components import Graph
from unweave.circuits.contrasts import in_pairs, logit_difference
from unweave.circuits.running import (
    Elsewhere,
    circuit_metrics,
    mean_outputs,
    plain_metrics,
    run_circuit,
)
from unweave.circuits.wired import Listening, Wired
from unweave.errors import UserError

VOCAB = 97


@pytest.mark.parametrize(
    ("model", "graph", "edges"),
    [
        ("gpt2", Graph(12, 12, 12), 32491),
        ("qwen2.5-0.5b", Graph(24, 14, 2), 179749),
        ("gemma2-2b", Graph(26, 8, 4), 74218),
        ("llama3.1-8b", Graph(32, 32, 8), 1592881),
    ],
)
def test_edges_are_as_many_as_mib_counts(model: str, graph: Graph, edges: int) -> None:
    assert graph.n_weighted == edges, model
    assert (graph.n_edges == edges) == (graph.group == 1)


def test_a_parallel_block_has_no_edges_from_its_attention_to_its_mlp() -> None:
    names = {False: None, True: None}
    for parallel in names:
        graph = Graph(2, 2, 2, parallel)
        names[parallel] = set(graph.named(graph.mask.float()))
    missing = {(f"blocks.{i}.head.{h}", f"blocks.{i}.mlp") for i in range(2) for h in range(2)}
    assert names[False] - names[True] == missing


@pytest.mark.parametrize("family", FAMILIES)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(family: str) -> None:
    wired = Wired(family_subject(family))
    some, mask = contrasts(5, VOCAB), wired.graph.mask
    plain = plain_metrics(wired.subject, some)
    assert (plain[0] - plain[1]).abs().mean() > 1e-1
    almost = mask.clone()
    almost[0, 0] = False
    full, empty, cut = circuit_metrics(wired, some, [mask, torch.zeros_like(mask), almost])
    torch.testing.assert_close(full, plain[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(empty, plain[1], rtol=0, atol=1e-4)
    assert (cut - plain[0]).abs().max() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_what_sources_write_adds_up_to_the_stream_but_for_what_is_always_the_same(
    family: str,
) -> None:
    wired = Wired(family_subject(family))
    pairs = next(in_pairs(contrasts(5, VOCAB), 5))
    outs, streams = [], []
    for tokens in (pairs.clean, pairs.corrupt):
        rule = Listening(wired.graph)
        wired.run(tokens, rule)
        outs.append(rule.outputs)
        site = f"blocks.{wired.subject.n_layers - 1}.resid_post"
        streams.append(wired.subject.run(tokens, capture=[site]).sites[site])
    torch.testing.assert_close(
        (outs[0] - outs[1]).sum(2), streams[0] - streams[1], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("edge", [("blocks.0.mlp", "q"), ("embed", "k"), ("blocks.0.head.1", "v")])
def test_one_edge_that_is_cut_changes_the_input_of_its_target_and_nothing_else(
    edge: tuple[str, str],
) -> None:
    """Beside a run with one hook, written without the graph."""
    subject = tiny_llama()
    wired = Wired(subject)
    pairs = next(in_pairs(contrasts(4, 64), 4))
    clean, other = wired.outputs(pairs.clean), wired.outputs(pairs.corrupt)
    source, part = wired.graph.sources.index(edge[0]), edge[1]
    weights = getattr(subject.attention_weights(1), f"W_{part.upper()}")
    norm = subject.model.get_submodule(subject.place("blocks.1.attn.in").module)
    stream = subject.run(pairs.clean, capture=["blocks.1.resid_pre"]).sites["blocks.1.resid_pre"]
    mixed = norm(stream + (other - clean)[:, :, source])

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[:, :, 1] = mixed @ weights[1 if part == "q" else subject.n_heads - 1]
        return tensor

    expected = subject.run(pairs.clean, replace={f"blocks.1.attn.{part}": cut}).logits
    kind = "head" if part == "q" else "kv"
    circuit = wired.graph.mask.clone()
    circuit[source, wired.graph.targets.index(f"blocks.1.{kind}.1.{part}")] = False
    found = run_circuit(wired, pairs, circuit, other)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - subject.run(pairs.clean).logits).abs().max() > 1e-3


def test_zeros_and_means_in_place_of_the_corrupted_prompt() -> None:
    wired = Wired(tiny_llama())
    some, empty = contrasts(4, 64), torch.zeros_like(wired.graph.mask)
    pairs = next(in_pairs(some, 4))
    means = mean_outputs(wired, some)
    there = torch.arange(pairs.clean.shape[1]) <= pairs.last[:, None]
    torch.testing.assert_close(means, wired.outputs(pairs.clean)[there].mean(0))
    final = wired.subject.model.get_submodule(wired.subject.place("final").module)
    head = wired.subject.model.lm_head
    logits = head(final(means.sum(0))).expand(4, pairs.clean.shape[1], -1)
    found = circuit_metrics(wired, some, [empty], elsewhere=Elsewhere("mean", means))[0]
    torch.testing.assert_close(
        found[pairs.which], logit_difference(logits, pairs), rtol=0, atol=1e-5
    )
    zero = circuit_metrics(wired, some, [empty], elsewhere=Elsewhere("zero"))[0]
    torch.testing.assert_close(zero, torch.zeros(4), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="mean_outputs"):
        circuit_metrics(wired, some, [empty], elsewhere=Elsewhere("mean"))


def test_batches_and_circuits_run_together_change_nothing() -> None:
    wired = Wired(tiny_llama())
    some = contrasts(7, 64)
    circuits = [top_circuit(wired.graph, random_scores(wired.graph, seed=s), 0.5) for s in (0, 1)]
    whole = circuit_metrics(wired, some, circuits, batch=7)
    torch.testing.assert_close(circuit_metrics(wired, some, circuits[1:], batch=2), whole[1:])
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_coarse_weights_are_refused() -> None:
    subject = tiny_llama()
    subject.model.bfloat16()
    with pytest.raises(UserError, match="float32"):
        Wired(subject)
