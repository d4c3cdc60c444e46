"""Edges between components, read from the virtual weights of a decompiled network.

A component's features are its latents: those of its head, or of its MLP; the embedding's are the
tokens, the positions' the places. What features s of S add to what T writes, with the latents t of
T on that are on, is

    net_T(S) = sum_{t on} dec_t sum_s V_ts a_s           (for values, moved along the pattern)

`net` takes an edge for as strong as net_T(S) varies over places, `pairs` for as strong as its
strongest pair of features, |V_ts| E[a_s | t on] |dec_t|, which is what `decompile.edges` ranks by:
latents whose reading of S cancels in what T writes have strong pairs and no net. Queries and keys
write scores, by the keys and queries that they meet. As targets write in units of their own, an
edge counts by its share of all edges into T, times v / (1 + v), v being how much what T writes
varies (in nats for scores and logits, otherwise against the stream).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.decompile.edges import virtual_weights, written_by
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.subject import Subject
from unweave.validate.worlds.programs.compiled import candidate_edges
from unweave.validate.worlds.programs.edge_scores import Scores, writing
from unweave.validate.worlds.programs.layout import (
    EMBED,
    LOGITS,
    POSITIONS,
    Edge,
    head_name,
    mlp_name,
)


class Writer(NamedTuple):
    """A component's features."""

    vectors: Float[Tensor, "features d_model"]
    """What each adds to the stream per unit."""
    active: Float[Tensor, "rows pos features"]
    """How strong each is."""

    @property
    def after_start(self) -> Float[Tensor, "places features"]:
        """How strong each is at all places after the start of rows, one after another."""
        return self.active[:, 1:].flatten(0, 1)


class EdgeStrengths(NamedTuple):
    """Scores of all candidate edges."""

    pairs: Scores
    """By the strongest pair of features, co-activation weighted."""
    net: Scores
    """By what arrives together."""


class Running(NamedTuple):
    """What is on in the decompiled network on some rows."""

    active: dict[str, Float[Tensor, "rows pos latents"]]
    """Activations of every part."""
    sites: dict[str, Tensor]
    """Patterns, queries and keys."""


@torch.no_grad()
def running(subject: Subject, parts: Mapping[str, Part], rows: Int[Tensor, "rows pos"]) -> Running:
    """Activations of all parts in splice mode `propagated`."""
    network, found = DecompiledNetwork(subject, parts), {}
    for name, code in network.codes(rows).items():
        dense = code.value.new_zeros(len(code.value), parts[name].spec.n_latents)
        found[name] = dense.scatter_add_(1, code.latent, code.value).unflatten(0, rows.shape)
    kinds = ("q", "k", "pattern")
    sites = [f"blocks.{n}.attn.{kind}" for n in range(subject.n_layers) for kind in kinds]
    return Running(found, network.subject.run(rows, capture=sites, logits=False).sites)


@torch.no_grad()
def writers_of(
    subject: Subject,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    on: Running,
) -> dict[str, Writer]:
    """Features of all components, in their order of computation."""
    places = writing(subject, POSITIONS)
    place = torch.arange(rows.shape[1]).expand(rows.shape)
    found = {
        EMBED: Writer(subject.embed(), F.one_hot(rows, subject.vocab_size).float()),
        POSITIONS: Writer(places, F.one_hot(place, len(places)).float()),
    }
    for layer in range(subject.n_layers):
        for head in range(subject.n_heads):
            found[head_name(layer, head)] = _latents(subject, parts[f"L{layer}.attn"], head, on)
        found[mlp_name(layer)] = _latents(subject, parts[f"L{layer}.mlp"], 0, on)
    return found


@torch.no_grad()
def decompiled_edges(
    subject: Subject, parts: Mapping[str, Part], rows: Int[Tensor, "rows pos"]
) -> EdgeStrengths:
    """Score every edge that the architecture allows, on what the decompiled network does."""
    on = running(subject, parts, rows)
    writers = writers_of(subject, parts, rows, on)
    into: dict[str, list[Edge]] = {}
    for edge in candidate_edges(subject):
        into.setdefault(edge.target, []).append(edge)
    spread = sum(writer_spread(w) ** 2 for w in writers.values()) ** 0.5
    pairs: Scores = {}
    net: Scores = {}
    for target, edges in into.items():
        found = {e: _arriving(subject, parts, target, writers[e.source], on) for e in edges}
        whole = _varying(torch.stack([one.net for one in found.values()]).sum(0))
        unit = 1.0 if target == LOGITS or target[-2:] in (".q", ".k") else max(spread, 1e-9)
        size = whole / unit / (1 + whole / unit)
        pairs |= _shares({e: one.pair for e, one in found.items()}, size)
        net |= _shares({e: _varying(one.net) for e, one in found.items()}, size)
    return EdgeStrengths(pairs, net)


def writer_spread(writer: Writer) -> float:
    """How much what a component writes varies over places: root of its summed variances."""
    return _varying(writer.after_start @ writer.vectors)


class _Arriving(NamedTuple):
    pair: float
    net: Tensor
    """[places, outputs]"""


def _arriving(
    subject: Subject, parts: Mapping[str, Part], target: str, writer: Writer, on: Running
) -> _Arriving:
    if target == LOGITS:
        unembed = subject.unembed() - subject.unembed().mean(0)
        weight = unembed @ writer.vectors.T
        pair = weight.abs() * writer.after_start.abs().mean(0)
        return _Arriving(_largest(pair), writer.after_start @ weight.T)
    names = target.split(".")
    layer, role = int(names[1]), names[2] if names[2] == "mlp" else names[4]
    head = 0 if role == "mlp" else int(names[3])
    part = parts[f"L{layer}.{'attn' if role == 'v' else role}"]
    mine = _of_head(part, head if role == "v" else 0)
    weight = virtual_weights(subject, part, writer.vectors, mine)
    reaching = part.W_dec.detach()[mine] / part.spec.output_scale
    if role in "qk":
        reaching = reaching.unflatten(1, (subject.n_heads, -1))[:, head]
        reaching = reaching @ _met(on, layer, role, head, subject.d_head)
    active = on.active[part.spec.name][:, :, mine]
    told = writer.active @ weight.T
    source = writer.active.abs()
    if role == "v":
        pattern = on.sites[f"blocks.{layer}.attn.pattern"][:, head]
        told, source = pattern @ told, pattern @ source
    there = (active > 0).float()[:, 1:].flatten(0, 1)
    share = there / there.sum(0).clamp_min(1)
    delivered = weight.abs() * (share.T @ source[:, 1:].flatten(0, 1))
    net = (told[:, 1:].flatten(0, 1) * there) @ reaching
    return _Arriving(_largest(delivered * reaching.norm(dim=1, keepdim=True)), net)


def _met(on: Running, layer: int, role: str, head: int, d_head: int) -> Tensor:
    """[d_head, d_head]: makes of what a query writes the score over keys, in root mean square."""
    other = on.sites[f"blocks.{layer}.attn.{'k' if role == 'q' else 'q'}"][:, :, head].flatten(0, 1)
    if role == "q":  # what a query adds to all its keys alike changes no pattern
        other = other - other.mean(0)
    second = other.T @ other / len(other)
    size, axes = torch.linalg.eigh(second.double())
    return ((axes * size.clamp_min(0).sqrt()) * d_head**-0.5).to(other.dtype)


def _latents(subject: Subject, part: Part, head: int, on: Running) -> Writer:
    mine = _of_head(part, head)
    return Writer(written_by(subject, part, mine), on.active[part.spec.name][:, :, mine])


def _of_head(part: Part, head: int) -> Tensor:
    per_head = part.spec.n_latents // part.spec.heads
    return torch.arange(head * per_head, (head + 1) * per_head)


def _largest(pairs: Tensor) -> float:
    return pairs.max().item() if pairs.numel() else 0.0


def _varying(arriving: Tensor) -> float:
    return (arriving - arriving.mean(0)).square().mean(0).sum().sqrt().item()


def _shares(sizes: dict[Edge, float], whole: float) -> Scores:
    total = sum(size**2 for size in sizes.values()) ** 0.5
    return {edge: whole * size / max(total, 1e-12) for edge, size in sizes.items()}
