"""Ways to score the edges of a network without layer norm: what is held to a compiled program.

- `patched_edges`: what one component hands another is exchanged for what it hands over at a random
  other place of a random other row; the score is what that costs (path patching; exact).
- `gradient_edges`: the same to first order, from one backward pass (edge attribution patching).
- `weight_edges`, `attention_edges`: how large weights or attention are; no intervention at all.
- `random_edges`: the control.

Without norms a component's input is the sum of what others wrote, so exchanging one term of it
changes one edge and nothing else; what the reader then writes flows on as it would.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.errors import UserError
from unweave.subject import Replacement, Subject
from unweave.validate.circuit_truth import merged_target
from unweave.validate.worlds.programs.compiled import candidate_edges
from unweave.validate.worlds.programs.layout import (
    EMBED,
    LOGITS,
    POSITIONS,
    Edge,
    head_name,
    mlp_name,
)
from unweave.validate.worlds.programs.network import MODEL_TYPE

Rows = Int[Tensor, "rows pos"]
Groups = Sequence[Int[Tensor, "_ _"]]
"""Rows of token ids; every group holds rows of one length."""
Scores = dict[Edge, float]


class _Target(NamedTuple):
    """Where an edge ends: the site that is changed, the head there, and what reads the stream."""

    site: str
    head: int | None
    read: Tensor
    """[d_model, width]: from what is written to what arrives at the site."""


def _target(subject: Subject, name: str) -> _Target:
    straight = torch.eye(subject.d_model)
    if name == LOGITS:
        return _Target("final", None, straight)
    parts = name.split(".")
    if parts[2] == "mlp":
        return _Target(f"blocks.{parts[1]}.mlp.in", None, straight)
    weights, head = subject.attention_weights(int(parts[1])), int(parts[3])
    read = {"q": weights.W_Q, "k": weights.W_K, "v": weights.W_V}[parts[4]]
    return _Target(f"blocks.{parts[1]}.attn.{parts[4]}", head, read[head])


@torch.no_grad()
def written(subject: Subject, rows: Rows) -> dict[str, Float[Tensor, "rows pos d_model"]]:
    """What every component adds to the stream.

    Raises:
        UserError: a network with norms, in which components' outputs do not simply add up.
    """
    if subject.family != MODEL_TYPE:
        raise UserError(
            f"{subject.name} is a {subject.family}; edges are scored here in compiled programs, "
            "which have no norms"
        )
    sites = [f"blocks.{i}.{s}" for i in range(subject.n_layers) for s in ("attn.z", "mlp.out")]
    sites += ["embed", "blocks.0.resid_pre"]
    found = subject.run(rows, capture=sites, logits=False).sites
    out = {EMBED: found["embed"], POSITIONS: found["blocks.0.resid_pre"] - found["embed"]}
    for layer in range(subject.n_layers):
        z = found[f"blocks.{layer}.attn.z"].unflatten(-1, (subject.n_heads, -1))
        W_O = subject.attention_weights(layer).W_O
        for head in range(subject.n_heads):
            out[head_name(layer, head)] = z[:, :, head] @ W_O[head]
        out[mlp_name(layer)] = found[f"blocks.{layer}.mlp.out"]
    return out


def _changes(
    subject: Subject, groups: Groups, seed: int
) -> list[dict[str, Float[Tensor, "rows pos d_model"]]]:
    """For each group of rows, what changes when a component writes as it does at another place.

    Other places are drawn from all groups, so the length of a row varies as well; the start of a
    row is left as it was.
    """
    runs = [written(subject, rows) for rows in groups]
    pool = {name: torch.cat([run[name][:, 1:].flatten(0, 1) for run in runs]) for name in runs[0]}
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for rows, run in zip(groups, runs, strict=True):
        size = len(rows), rows.shape[1] - 1
        other = torch.randint(len(pool[EMBED]), size, generator=generator)
        change = {name: torch.zeros_like(own) for name, own in run.items()}
        for name, own in run.items():
            change[name][:, 1:] = pool[name][other] - own[:, 1:]
        changes.append(change)
    return changes


def _patch(target: _Target, change: Tensor) -> dict[str, Replacement]:
    arriving = change @ target.read

    def patched(tensor: Tensor) -> Tensor:
        if target.head is None:
            return tensor + arriving
        tensor = tensor.clone()
        tensor[:, :, target.head] += arriving
        return tensor

    return {target.site: patched}


@torch.no_grad()
def patched_edges(subject: Subject, groups: Groups, *, seed: int) -> Scores:
    """KL (nats a place) of the output when one edge carries what it carries elsewhere.

    One forward pass for each edge and group.
    """
    edges = candidate_edges(subject)
    targets = {name: _target(subject, name) for name in {edge.target for edge in edges}}
    cost, places = dict.fromkeys(edges, 0.0), 0
    for rows, change in zip(groups, _changes(subject, groups, seed), strict=True):
        clean = _log_probabilities(subject, rows, {})
        places += clean.shape[0] * clean.shape[1]
        for edge in edges:
            patch = _patch(targets[edge.target], change[edge.source])
            given = _log_probabilities(subject, rows, patch)
            cost[edge] += (clean.exp() * (clean - given)).sum().clamp(min=0).item()
    return {edge: total / places for edge, total in cost.items()}


def _log_probabilities(
    subject: Subject, rows: Rows, replace: dict[str, Replacement]
) -> Float[Tensor, "rows pos-1 vocab"]:
    logits = subject.run(rows, replace=replace).logits
    assert logits is not None
    return logits[:, 1:].double().log_softmax(-1)


def gradient_edges(subject: Subject, groups: Groups, *, seed: int) -> Scores:
    """The first-order effect of the same exchange on the margin of the network's own answer.

    The mean over places of |change . gradient|, the gradient being that of the answer's logit less
    the mean logit, taken where the edge ends.
    """
    edges = candidate_edges(subject)
    targets = {name: _target(subject, name) for name in {edge.target for edge in edges}}
    effect, places = dict.fromkeys(edges, 0.0), 0
    for rows, change in zip(groups, _changes(subject, groups, seed), strict=True):
        slope = _slopes(subject, rows, {target.site for target in targets.values()})
        places += rows.shape[0] * (rows.shape[1] - 1)
        for edge in edges:
            target = targets[edge.target]
            at = slope[target.site]
            at = at if target.head is None else at[:, :, target.head]
            effect[edge] += (change[edge.source] @ target.read * at).sum(-1).abs().sum().item()
    return {edge: total / places for edge, total in effect.items()}


def _slopes(subject: Subject, rows: Rows, sites: set[str]) -> dict[str, Tensor]:
    """The margin's gradient at sites."""
    added: dict[str, Tensor] = {}

    def adding(site: str) -> Callable[[Tensor], Tensor]:
        def visit(tensor: Tensor) -> Tensor:
            added[site] = torch.zeros_like(tensor).requires_grad_()
            return tensor + added[site]

        return visit

    with torch.enable_grad():
        logits = subject.run(rows, replace={site: adding(site) for site in sorted(sites)}).logits
        assert logits is not None
        margin = (logits.amax(-1) - logits.mean(-1))[:, 1:].sum()
        names = sorted(added)
        found = torch.autograd.grad(margin, [added[n] for n in names], allow_unused=True)
    return {
        n: torch.zeros_like(added[n]) if slope is None else slope
        for n, slope in zip(names, found, strict=True)
    }


@torch.no_grad()
def writing(subject: Subject, source: str) -> Float[Tensor, "inputs d_model"]:
    """The weights that a component writes to the stream by."""
    if source == EMBED:
        return subject.embed()
    if source == POSITIONS:
        return subject.model.get_parameter("positions.weight")
    parts = source.split(".")
    if parts[2] == "mlp":
        return subject.mlp_weights(int(parts[1])).W_out
    return subject.attention_weights(int(parts[1])).W_O[int(parts[3])]


@torch.no_grad()
def reading(subject: Subject, target: str) -> Float[Tensor, "d_model outputs"]:
    """The weights that the end of an edge reads the stream by."""
    if target == LOGITS:
        return subject.unembed().T
    if target.endswith(".mlp"):
        return subject.mlp_weights(int(target.split(".")[1])).W_in.T
    return _target(subject, target).read


def weight_edges(subject: Subject) -> Scores:
    """Frobenius norm of what a component writes by times what another reads by."""
    edges = candidate_edges(subject)
    writes = {name: writing(subject, name) for name in {edge.source for edge in edges}}
    reads = {name: reading(subject, name) for name in {edge.target for edge in edges}}
    return {edge: (writes[edge.source] @ reads[edge.target]).norm().item() for edge in edges}


@torch.no_grad()
def attention_edges(subject: Subject, groups: Groups) -> Scores:
    """How much attention a head pays to anything but the start; elsewhere, the mean length of what
    is written. What one would read off attention maps: no edge is ever changed.
    """
    sites = [f"blocks.{layer}.attn.pattern" for layer in range(subject.n_layers)]
    paid: dict[str, float] = defaultdict(float)
    length: dict[str, float] = defaultdict(float)
    for rows in groups:
        found = subject.run(rows, capture=sites, logits=False).sites
        for layer, site in enumerate(sites):
            share = found[site][:, :, 1:, 1:].sum(-1).mean((0, 2)) / len(groups)
            for head, value in enumerate(share.tolist()):
                paid[head_name(layer, head)] += value
        for name, out in written(subject, rows).items():
            length[name] += out[:, 1:].norm(dim=-1).mean().item() / len(groups)
    return {
        edge: paid.get(merged_target(edge.target), length[edge.source])
        for edge in candidate_edges(subject)
    }


def random_edges(subject: Subject, *, seed: int) -> Scores:
    """A number drawn for each edge."""
    edges = candidate_edges(subject)
    drawn = torch.rand(len(edges), generator=torch.Generator().manual_seed(seed))
    return dict(zip(edges, drawn.tolist(), strict=True))
