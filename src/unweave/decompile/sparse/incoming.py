"""The graph read from a running network: what arrives at a reader, and where a writer sends.

A pre-activation is its offset plus the sum of its incoming edges, each the writer's strength times
the edge over the norm's scale; into attention latents at every source, times the pattern:

    pre_t = c_t + sum_w a_w V[w, t] / s
    pre_t = c_t + sum over sources s of A_h(t, s) sum_w a_w(s) V[w, t] / s(s)
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.decompile.sparse.machine import Strengths, Trace
from unweave.decompile.sparse.spec import norm_before
from unweave.decompile.sparse.stored import SparseEdgeNetwork


class Incoming(NamedTuple):
    """One edge that delivers something at one position."""

    writer_part: str
    """`token`, or the part that the writer belongs to."""
    writer: int
    """Token, latent, or one of the part's two constants behind its latents."""
    row: int
    """Position of the writer, rows of the batch one after another."""
    weight: float
    """The edge."""
    amount: float
    """What it adds to the pre-activation; negative where it keeps the reader down."""


def incoming(
    network: SparseEdgeNetwork, found: Trace, reader: str, latent: int, row: int
) -> list[Incoming]:
    """Every edge that delivers to a latent (or logit) at a position, the largest first."""
    assert found.strengths is not None
    rows, share = _sources(network, found, reader, latent, row)
    here = _at(network, found.strengths, reader, rows)
    sent = network.arriving(here, reader)
    mine = (sent.target == latent).nonzero()[:, 0]
    scale = found.scale[norm_before(reader)]
    edges = []
    for index in mine.tolist():
        at, writer = int(sent.row[index]), int(sent.writer[index])
        amount = float(sent.amount[index] * share[at] / scale[rows[at]])
        part, number = owner(network, writer)
        weight = float(weight_of(network, reader, writer, latent))
        edges.append(Incoming(part, number, int(rows[at]), weight, amount))
    return sorted(edges, key=lambda edge: -abs(edge.amount))


def outgoing(
    network: SparseEdgeNetwork, part: str, writer: int, reader: str
) -> tuple[Int[Tensor, " edges"], Float[Tensor, " edges"]]:
    """Whom a writer sends to in one table, and along which edges."""
    number = network.spec.writers[part][0] + writer
    out = network.out[reader]
    if number >= len(out.first) - 1:  # the writer comes after the reader
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    mine = slice(int(out.first[number]), int(out.first[number + 1]))
    return out.target[mine].long(), out.weight[mine]


def owner(network: SparseEdgeNetwork, writer: int) -> tuple[str, int]:
    """The part of a writer, and its number within it."""
    for part, (first, end) in network.spec.writers.items():
        if first <= writer < end:
            return part, writer - first
    raise AssertionError


def weight_of(network: SparseEdgeNetwork, reader: str, writer: int, latent: int) -> float:
    """One edge; zero where there is none."""
    out = network.out[reader]
    mine = slice(int(out.first[writer]), int(out.first[writer + 1]))
    return float(out.weight[mine][out.target[mine] == latent].sum())


def _sources(
    network: SparseEdgeNetwork, found: Trace, reader: str, latent: int, row: int
) -> tuple[Int[Tensor, " sources"], Float[Tensor, " sources"]]:
    """Positions that a reader reads at a row, and how much of each."""
    if not reader.endswith(".attn"):
        return torch.tensor([row]), torch.ones(1)
    pattern = found.pattern[reader]
    batch, query = divmod(row, pattern.shape[2])
    head = latent // (network.spec.latents[reader] // network.spec.heads)
    sources = torch.arange(query + 1)
    return sources + batch * pattern.shape[2], pattern[batch, head, query, : query + 1]


def _at(
    network: SparseEdgeNetwork, strengths: Strengths, reader: str, rows: Int[Tensor, " sources"]
) -> Strengths:
    """What was on at some positions when a reader read."""
    seen = network.spec.seen(reader) - network.spec.vocab
    return Strengths(strengths.token[rows], strengths.on[rows, :seen])
