"""Pairs of latents that an artifact's graph says are connected, and which of them are tested."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.artifact.feature_id import FeatureId
from unweave.decompile.edges import virtual_weights, written_by
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.kernels.sparse import Code
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.interventions.latents import alike


class Edge(NamedTuple):
    """What one latent adds to another's pre-activation for each unit of itself."""

    source_part: str
    source: int
    target_part: str
    target: int
    weight: float
    """The virtual weight, up to the scale of the norm in between."""


def feature_edges(table: Mapping[str, np.ndarray]) -> list[Edge]:
    """Edges between latents out of an artifact's table; those of tokens and logits are left out."""
    found = []
    names: dict[str, FeatureId] = {}
    for source, target, weight in zip(
        table["source"], table["target"], table["weight"], strict=True
    ):
        if source.startswith("token/") or target.startswith("logit/"):
            continue
        for name in (source, target):
            if name not in names:
                names[name] = FeatureId.parse(name)
        (part, latent, _), (to_part, to, _) = names[source], names[target]
        found.append(Edge(part, latent, to_part, to, float(weight)))
    return found


def retargeted(
    subject: Subject, parts: Mapping[str, Part], edges: Sequence[Edge], *, seed: int = 0
) -> list[Edge]:
    """The same sources with the targets of other edges into the same part, weights to match.

    Pairs that no graph has chosen for what they deliver: mostly interference.
    """
    random, found = np.random.default_rng(seed), []
    between: dict[tuple[str, str], list[Edge]] = {}
    for edge in edges:
        between.setdefault((edge.source_part, edge.target_part), []).append(edge)
    for (name, to), group in between.items():
        sources, targets = (torch.tensor(each) for each in zip(*_ends(group), strict=True))
        targets = targets[torch.from_numpy(random.permutation(len(targets)))]
        into, row = targets.unique(return_inverse=True)
        out, column = sources.unique(return_inverse=True)
        weight = virtual_weights(subject, parts[to], written_by(subject, parts[name], out), into)
        found += [
            Edge(name, source, to, target, value)
            for source, target, value in zip(
                sources.tolist(), targets.tolist(), weight[row, column].tolist(), strict=True
            )
        ]
    return found


def _ends(edges: Sequence[Edge]) -> list[tuple[int, int]]:
    return [(edge.source, edge.target) for edge in edges]


class Firing(NamedTuple):
    """How a part's latents fire in the decompiled network, position 0 left out."""

    active: Int[Tensor, "rows latents"]
    """At how many places of a row each is active."""
    mass: Float[Tensor, " latents"]
    """Sum of the norms of what each writes: no matter what units its activations are in."""
    frequency: Float[Tensor, " latents"]
    """Share of places where each is active."""
    strength: Float[Tensor, " latents"]
    """Mean norm of what each writes where it is active."""


@torch.no_grad()
def firing(
    network: DecompiledNetwork,
    parts: Mapping[str, Part],
    rows: Int[Tensor, "rows pos"],
    *,
    batch: int = 16,
) -> dict[str, Firing]:
    """Every part's latents on the rows, as the decompiled network computes them."""
    counts: dict[str, list[Tensor]] = {name: [] for name in parts}
    masses = {name: torch.zeros(part.spec.n_latents) for name, part in parts.items()}
    for group in rows.split(batch):
        for name, code in network.codes(group).items():
            active, mass = _counted(code, len(group), parts[name].spec.n_latents)
            counts[name].append(active)
            masses[name] += mass
    places = len(rows) * (rows.shape[1] - 1)
    found = {}
    for name, part in parts.items():
        active = torch.cat(counts[name])
        mass = masses[name] * part.W_dec.detach().norm(dim=1).cpu()
        times = active.sum(0)
        found[name] = Firing(active, mass, times / places, mass / times.clamp_min(1))
    return found


def _counted(code: Code, rows: int, n_latents: int) -> tuple[Tensor, Tensor]:
    latent, value = (each.cpu().unflatten(0, (rows, -1))[:, 1:].flatten(1) for each in code)
    size = value.float().abs()  # a gated latent behind a shut gate is a little below zero
    on = (size > 0).long()
    active = torch.zeros(rows, n_latents, dtype=torch.int64).scatter_add_(1, latent, on)
    mass = torch.zeros(n_latents).scatter_add_(0, latent.flatten(), size.flatten())
    return active, mass


class Source(NamedTuple):
    """A latent to be silenced, its matched partner, and the edges out of it."""

    part: str
    latent: int
    partner: int
    edges: tuple[Edge, ...]


def sources_of(
    edges: Sequence[Edge], fired: Mapping[str, Firing], count: int, *, seed: int
) -> list[Source]:
    """Latents with edges out of them, drawn by firing mass, as many of each part as there are.

    Raises:
        UserError: no latent with an edge to another ever fires, or an edge's part is not there.
    """
    out: dict[tuple[str, int], list[Edge]] = {}
    for edge in edges:
        if not {edge.source_part, edge.target_part} <= fired.keys():
            raise UserError(
                f"The graph has an edge from {edge.source_part} to {edge.target_part}, but the "
                f"parts are {', '.join(fired)}: give all parts of one artifact"
            )
        out.setdefault((edge.source_part, edge.source), []).append(edge)
    random = torch.Generator().manual_seed(seed)
    parts = [name for name in fired if any(part == name for part, _ in out)]
    found = []
    for index, name in enumerate(parts):
        wanted = (index + 1) * count // len(parts) - index * count // len(parts)
        mass = torch.zeros_like(fired[name].mass)
        with_edges = [latent for part, latent in out if part == name]
        mass[with_edges] = fired[name].mass[with_edges]
        wanted = min(wanted, int((mass > 0).sum()))
        if not wanted:
            continue
        chosen = torch.multinomial(mass, wanted, generator=random)
        others = alike(fired[name].frequency, fired[name].strength, chosen)
        found += [
            Source(name, latent, other, tuple(out[name, latent]))
            for latent, other in zip(chosen.tolist(), others.tolist(), strict=True)
        ]
    if not found:
        raise UserError("No latent with an edge to another one fires on these rows")
    return found
