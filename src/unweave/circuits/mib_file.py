"""Circuits in MIB's own form: a JSON file with the score of every edge and which are kept.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {"a0.h1": {"in_graph": true}}, "edges": {"input->a0.h1<q>": {"score", "in_graph"}}}

MIB has keys and values for every query head. Where heads share them, a score of ours is the sum
over the heads that do, and is shared out evenly among them when written.
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch

from unweave.artifact.atomic import write_json
from unweave.circuits.components import EMBED, LOGITS, Circuit, Graph, Scores
from unweave.errors import UserError


class ScoredGraph(NamedTuple):
    """What such a file holds."""

    graph: Graph
    """Sources, targets and edges."""
    scores: Scores
    """Of every edge."""
    circuit: Circuit
    """The edges that are kept."""


def write_mib_circuit(
    path: Path, graph: Graph, scores: Scores, circuit: Circuit, *, d_model: int
) -> None:
    """Write a circuit with its scores, whole or not at all."""
    at, nodes = _places(graph), torch.zeros(len(graph.sources), dtype=torch.bool)
    nodes |= circuit.any(1)
    names = [_source(name) for name in graph.sources]
    edges = {
        edge: {
            "score": scores[place].item() / int(graph.weight[place[1]]),
            "in_graph": bool(circuit[place]),
        }
        for edge, place in at.items()
    }
    config = {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel, "d_model": d_model,
    }  # fmt: skip
    kept = {name: {"in_graph": bool(on)} for name, on in zip(names, nodes, strict=True)}
    write_json(path, {"cfg": config, "nodes": {**kept, LOGITS: {"in_graph": True}}, "edges": edges})


def read_mib_circuit(path: Path, *, n_kv_heads: int | None = None) -> ScoredGraph:
    """Read a circuit; the file does not say how many heads share keys and values, so one may.

    Raises:
        UserError: it is not of that form, or its edges are not those of a network of its sizes.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, edges = record["cfg"], record["edges"]
        heads = config["n_heads"]
        graph = Graph(
            config["n_layers"], heads, n_kv_heads or heads, bool(config["parallel_attn_mlp"])
        )
        places = _places(graph)
        scores, circuit = torch.zeros(graph.mask.shape), torch.zeros_like(graph.mask)
        for name, edge in edges.items():
            scores[places[name]] += float(edge["score"])
            circuit[places[name]] |= bool(edge["in_graph"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no circuit in MIB's form ({type(error).__name__}: {error}): it should have"
            " cfg, nodes and edges named like input->a0.h1<q>"
        ) from error
    if len(edges) != len(places):
        raise UserError(
            f"{path} has {len(edges)} edges, and a network of its sizes has {len(places)}"
        )
    return ScoredGraph(graph, scores, circuit)


def _source(name: str) -> str:
    if name == EMBED:
        return "input"
    _, layer, part, *head = name.split(".")
    return f"a{layer}.h{head[0]}" if part == "head" else f"m{layer}"


def _places(graph: Graph) -> dict[str, tuple[int, int]]:
    """Where each of MIB's edges is, by name."""
    found = {}
    for source, target in graph.mask.nonzero().tolist():
        for reader in _readers(graph, graph.targets[target]):
            found[f"{_source(graph.sources[source])}->{reader}"] = source, target
    return found


def _readers(graph: Graph, target: str) -> list[str]:
    if target == LOGITS:
        return [target]
    _, layer, part, *rest = target.split(".")
    if part == "mlp":
        return [f"m{layer}"]
    first, many = int(rest[0]), 1
    if rest[1] in "kv":
        first, many = first * graph.group, graph.group
    return [f"a{layer}.h{head}<{rest[1]}>" for head in range(first, first + many)]
