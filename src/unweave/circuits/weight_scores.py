"""Edges by weights alone: how much of what a component can write another can read.

The Frobenius norm of what a source writes by times what a target reads by, norms' gains folded in
(composition scores of Elhage et al. 2021). No prompt is read and nothing is changed: what
attribution must beat.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.circuits.components import Graph, Scores
from unweave.progress import QUIET, Progress
from unweave.subject import Subject


@torch.no_grad()
def weight_edge_scores(subject: Subject, *, progress: Progress = QUIET) -> Scores:
    """The norm for each edge; d_model^2 numbers are kept for each source."""
    graph = Graph.of(subject)
    scores = torch.zeros(len(graph.sources), len(graph.targets))
    written = torch.empty(len(graph.sources), subject.d_model**2)
    written[0] = _gram(subject.embed())
    with progress.task("weights", total=graph.n_layers, unit="blocks") as advance:
        for layer in range(graph.n_layers):
            for part in ("attn", "mlp"):
                readers = graph.readers(layer, part)
                reads = _attention_reads(subject, layer) if part == "attn" else _mlp(subject, layer)
                products = written[: readers.reach] @ reads.T
                scores[: readers.reach, readers.targets] = products.clamp_min(0).sqrt()
                _fill(written, subject, graph, layer, part)
            advance(1)
    logits = written @ _gram(subject.unembed())
    scores[:, -1] = logits.clamp_min(0).sqrt()
    return scores


def _gram(rows: Float[Tensor, "rows d"]) -> Float[Tensor, " d_squared"]:
    """|A B|^2 is the inner product of A^T A and B B^T."""
    rows = rows.float()
    return (rows.T @ rows).flatten()


def _fill(written: Tensor, subject: Subject, graph: Graph, layer: int, part: str) -> None:
    gain = subject.write_gain(layer, "attn" if part == "attn" else "mlp")
    if part == "mlp":
        written[graph.mlp(layer).start] = _gram(subject.mlp_weights(layer).W_out * gain)
        return
    W_O = subject.attention_weights(layer).W_O
    for head, row in enumerate(range(graph.heads(layer).start, graph.heads(layer).stop)):
        written[row] = _gram(W_O[head] * gain)


def _attention_reads(subject: Subject, layer: int) -> Float[Tensor, "targets d_squared"]:
    weights, gain = subject.attention_weights(layer), subject.norm_gain(layer, "attn")
    group = subject.n_heads // subject.n_kv_heads
    matrices = [*weights.W_Q, *weights.W_K[::group], *weights.W_V[::group]]
    return torch.stack([_gram(matrix.T * gain) for matrix in matrices])


def _mlp(subject: Subject, layer: int) -> Float[Tensor, "1 d_squared"]:
    weights, gain = subject.mlp_weights(layer), subject.norm_gain(layer, "mlp")
    reads = [weights.W_in, *([] if weights.W_gate is None else [weights.W_gate])]
    return _gram(torch.cat(reads) * gain)[None]
