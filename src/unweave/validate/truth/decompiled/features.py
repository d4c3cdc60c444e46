"""Are the true features among the latents of a decompiled network?

A compiled component writes its variable along known directions. Each is held to the decoder rows
of the latents of that head or MLP which ever fire (cosine), and what the network puts along it to
those latents' activations (correlation, over places). Values of one variable exclude each other and
one is always there, so that a latent may as well write the difference from their mean: cosines are
taken off the mean of what the component writes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unweave.dictionaries.part import Part
from unweave.validate.truth.decompiled.edges import Writer, running, writers_of
from unweave.validate.truth.decompiled.known import Known
from unweave.validate.worlds.programs.edge_scores import written

FOUND = 0.95
"""Cosine above which a direction counts as found."""


class FeaturesFound(NamedTuple):
    """True directions beside the latents that are nearest to each."""

    cosine: float
    """Mean over true directions of the highest |cosine| with a decoder row."""
    found: float
    """Share of true directions with a decoder row at a |cosine| of `FOUND` or more."""
    correlation: float
    """Mean over true directions of the highest |correlation| with a latent over places."""
    directions: int
    """True directions that vary on these rows."""


@torch.no_grad()
def features_found(
    known: Known, parts: Mapping[str, Part], rows: Int[Tensor, "rows pos"]
) -> FeaturesFound:
    """Over all heads and MLPs of the circuit."""
    writers = writers_of(known.subject, parts, rows, running(known.subject, parts, rows))
    truth = written(known.subject, rows)
    cosines, correlations = [], []
    for component, directions in known.written.items():
        strength = truth[component][:, 1:].flatten(0, 1) @ directions.T
        varies = strength.std(0) > 1e-4
        if varies.any():
            near, along = _nearest(writers[component], directions[varies], strength[:, varies])
            cosines.append(near)
            correlations.append(along)
    cosine, correlation = torch.cat(cosines), torch.cat(correlations)
    return FeaturesFound(
        cosine.mean().item(),
        (cosine >= FOUND).float().mean().item(),
        correlation.mean().item(),
        len(cosine),
    )


def _nearest(writer: Writer, directions: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    active = writer.after_start
    alive = (active != 0).any(0)
    if not alive.any():
        return directions.new_zeros(len(directions)), directions.new_zeros(len(directions))
    rows = writer.vectors[alive]
    if len(directions) > 1:
        mean = strength.mean(0) @ directions
        mean = mean / mean.norm().clamp_min(1e-9)
        directions, rows = (each - (each @ mean)[:, None] * mean for each in (directions, rows))
    cosine = (_unit(directions) @ _unit(rows).T).abs().amax(1)
    own = _standard(strength).T @ _standard(active[:, alive]) / len(strength)
    return cosine, own.abs().amax(1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)


def _standard(columns: Tensor) -> Tensor:
    centred = columns - columns.mean(0)
    return centred / centred.square().mean(0).sqrt().clamp_min(1e-9)
