"""Effects of latents on latents, predicted by virtual weights and then measured.

A block reads a weighted sum of what was written upstream, so silencing latent s, active with a_s,
should change the pre-activation of latent t by

    - V_ts a_s / scale                         t of an MLP, queries or keys, at the same token
    - V_ts sum_j A_h(., j) a_s(j) / scale(j)   t reads head h, along its pattern A_h

with V the edge that the graph stores and the norm's scale at that token held (`decompile.edges`).
Each pair is one number: the mean over the places where t is active and s reaches it. Published
for attribution graphs of a cross-layer transcoder: Spearman .72 between influence, which counts
indirect paths too, and the measured effect of ablations (Ameisen et al. 2025).

Beside it, always, three wrong predictions ("another" edge is one into the same part):

    partner    V_ts' of the latent of the source's part nearest to s in frequency and strength
    exposure   another edge's weight: what is known from a_s / scale and the edges' common sign
    shuffled   all that is predicted for another edge
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.decompile.edges import virtual_weights, written_by
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.interventions.agreement import Agreement, agreement
from unweave.validate.interventions.edge_pairs import Edge, Firing, Source, firing, sources_of
from unweave.validate.interventions.silencing import silence

Whose = Literal["own", "partner", "exposure", "shuffled"]


class VirtualWeightSettings(BaseModel):
    """Settings of the test."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sources: PositiveInt = 120
    """Latents silenced, drawn by firing mass, as many of each part."""
    rows: PositiveInt = 16
    """Rows in which each is silenced, drawn from those where it fires."""
    targets: PositiveInt = 16
    """Edges tested out of each at most, drawn from those whose target is active in these rows."""
    least: PositiveInt = 3
    """Places that a pair needs, where the target is active and the source reaches it."""
    bootstrap: BootstrapSettings = BootstrapSettings(resamples=200)
    """Intervals, over sources."""


class VirtualEffects(NamedTuple):
    """Pairs of latents: what was predicted of each, and what happened."""

    pairs: tuple[Edge, ...]
    """The edges tested."""
    source: Int[np.ndarray, " pairs"]
    """Which of the silenced latents each pair begins with."""
    places: Int[np.ndarray, " pairs"]
    """Places that each pair is a mean over."""
    predicted: dict[Whose, Float[np.ndarray, " pairs"]]
    """Change by the edge's own weight and by wrong ones."""
    measured: dict[tuple[str, str], Float[np.ndarray, " pairs"]]
    """Change by route (`direct`, `total`) and of what (`pre`, `activation`)."""

    @property
    def one_sign(self) -> float:
        """The sign agreement of saying the commoner predicted sign of every pair."""
        up = float((self.predicted["own"] > 0).mean())
        return max(up, 1 - up)

    def agreements(
        self, settings: BootstrapSettings | None = None
    ) -> dict[tuple[str, str, Whose], Agreement]:
        """How well each weight predicts each measured change, intervals over sources."""
        return {
            (path, what, whose): agreement(said, found, self.source, settings)
            for (path, what), found in self.measured.items()
            for whose, said in self.predicted.items()
        }


@torch.no_grad()
def virtual_weight_effects(
    subject: Subject,
    parts: Mapping[str, Part],
    edges: Sequence[Edge],
    rows: Int[Tensor, "rows pos"],
    settings: VirtualWeightSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = QUIET,
) -> VirtualEffects:
    """Silence latents of a decompiled network one by one and hold its graph against what happens.

    `parts` are all parts of an artifact, `edges` its graph (`feature_edges`); rows are held out.

    Raises:
        UserError: nothing with an edge fires, or fewer than two pairs are ever active together.
    """
    settings = settings or VirtualWeightSettings()
    network = DecompiledNetwork(subject, parts)
    fired = firing(network, parts, rows)
    chosen = sources_of(edges, fired, settings.sources, seed=seed)
    bench = _Bench(subject, network, parts, fired, rows, settings)
    random = torch.Generator().manual_seed(seed)
    tested: list[_Pair] = []
    with progress.task("virtual weights", total=len(chosen), unit="latents") as advance:
        for index, source in enumerate(chosen):
            which, groups = _drawn(bench, source, random)
            tested += _pairs(bench, source, index, which, groups)
            advance(1)
    if len(tested) < 2:
        raise UserError(
            "The graph's edges join hardly any latents that are active together on these rows: "
            "give more rows"
        )
    return _effects(tested, seed)


class _Bench(NamedTuple):
    subject: Subject
    network: DecompiledNetwork
    parts: Mapping[str, Part]
    fired: Mapping[str, Firing]
    rows: Int[Tensor, "rows pos"]
    settings: VirtualWeightSettings


class _Pair(NamedTuple):
    edge: Edge
    source: int
    places: int
    exposure: float
    partner: float
    """Virtual weight of the source's partner."""
    moved: dict[tuple[str, str], float]


def _drawn(
    bench: _Bench, source: Source, random: torch.Generator
) -> tuple[Int[Tensor, " some"], dict[str, list[Edge]]]:
    """Rows where the source fires, and edges to latents that are active there, by their part."""
    there = bench.fired[source.part].active[:, source.latent].nonzero()[:, 0]
    which = there[torch.randperm(len(there), generator=random)[: bench.settings.rows]]
    seen = [e for e in source.edges if bench.fired[e.target_part].active[which, e.target].any()]
    drawn = torch.randperm(len(seen), generator=random)[: bench.settings.targets].tolist()
    groups: dict[str, list[Edge]] = {}
    for edge in (seen[each] for each in drawn):
        groups.setdefault(edge.target_part, []).append(edge)
    return which, groups


def _pairs(
    bench: _Bench, source: Source, index: int, which: Tensor, groups: dict[str, list[Edge]]
) -> list[_Pair]:
    if not groups:
        return []
    part, found = bench.parts[source.part], []
    other = written_by(bench.subject, part, torch.tensor([source.partner]))
    readers = [
        (bench.parts[name], torch.tensor([edge.target for edge in group]))
        for name, group in groups.items()
    ]
    seen = silence(bench.subject, bench.network, part, source.latent, readers, bench.rows[which])
    for (reader, targets), group, what in zip(readers, groups.values(), seen, strict=True):
        wrong = virtual_weights(bench.subject, reader, other, targets)[:, 0]
        for place, edge in enumerate(group):
            on = what.active[:, :, place] & (what.exposure[:, :, place] > 0)
            on[:, 0] = False
            if int(on.sum()) < bench.settings.least:
                continue
            exposure = what.exposure[:, :, place][on].mean().item()
            moved = {key: each[:, :, place][on].mean().item() for key, each in what.moved.items()}
            found.append(_Pair(edge, index, int(on.sum()), exposure, wrong[place].item(), moved))
    return found


def _effects(tested: list[_Pair], seed: int) -> VirtualEffects:
    exposure, weight, partner = (
        np.array(column)
        for column in zip(*((p.exposure, p.edge.weight, p.partner) for p in tested), strict=True)
    )
    # One place on in a random order by parts: no edge keeps its own weight.
    part = np.array([pair.edge.target_part for pair in tested])
    drawn = np.random.default_rng(seed).permutation(len(tested))
    order = drawn[np.argsort(part[drawn], kind="stable")]
    another = np.empty(len(tested), dtype=np.int64)
    another[order] = np.roll(order, 1)
    return VirtualEffects(
        tuple(pair.edge for pair in tested),
        np.array([pair.source for pair in tested]),
        np.array([pair.places for pair in tested]),
        {
            "own": -weight * exposure,
            "partner": -partner * exposure,
            "exposure": -weight[another] * exposure,
            "shuffled": -(weight * exposure)[another],
        },
        {key: np.array([pair.moved[key] for pair in tested]) for key in tested[0].moved},
    )
