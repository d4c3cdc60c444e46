"""Circuits in MIB's form."""

import json
from pathlib import Path

import pytest

from unweave.circuits.choosing import random_scores, top_circuit
from unweave.circuits.components import Graph
from unweave.circuits.mib_file import read_mib_circuit, write_mib_circuit
from unweave.errors import UserError


@pytest.mark.parametrize("graph", [Graph(2, 4, 4), Graph(2, 4, 2), Graph(2, 2, 2, True)])
def test_what_is_written_is_read_again(graph: Graph, tmp_path: Path) -> None:
    scores = random_scores(graph, seed=0)
    circuit = top_circuit(graph, scores, 0.3)
    path = tmp_path / "circuit.json"
    write_mib_circuit(path, graph, scores, circuit, d_model=8)
    back = read_mib_circuit(path, n_kv_heads=graph.n_kv_heads)
    assert back.graph == graph
    assert (back.scores - scores).abs().max() < 1e-6
    assert back.circuit.equal(circuit)
    assert len(json.loads(path.read_text())["edges"]) == graph.n_weighted


def test_a_published_file_has_our_edges(shared_data: Path) -> None:
    path = shared_data / "schemas" / "mib_example" / "ioi-eap-ig.json"
    found = read_mib_circuit(path)
    assert found.graph == Graph(12, 12, 12)
    record = json.loads(path.read_text())["edges"]
    named = found.graph.named(found.scores)
    assert named["embed", "blocks.0.head.1.q"] == pytest.approx(record["input->a0.h1<q>"]["score"])
    assert named["blocks.3.mlp", "logits"] == pytest.approx(record["m3->logits"]["score"])
    assert int(found.circuit.sum()) == sum(edge["in_graph"] for edge in record.values()) > 0


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="no circuit in MIB's form"):
        read_mib_circuit(path)
    graph = Graph(1, 2, 2)
    write_mib_circuit(path, graph, random_scores(graph, seed=0), graph.mask, d_model=8)
    record = json.loads(path.read_text())
    record["edges"].pop("input->m0")
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"has 12 edges, .* has 13"):
        read_mib_circuit(path)
