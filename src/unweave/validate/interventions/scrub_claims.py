"""Descriptions scrubbed: a latent's activation comes from another place that reads the same to it.

A claim predicts an expected activation for every place. Places for which it predicts the same are
claimed to be interchangeable; every latent of a dictionary is resampled among them, each on its
own, and the loss is compared with resampling among all places (0) and with the original (1). The
control gives each latent the claim of another one. Two places count as predicted the same only
where the numbers are equal, which groups by the keys of the rules.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.describe.claims import Claim
from unweave.describe.vocabulary import Vocabulary
from unweave.dictionaries.code import SparseCode
from unweave.subject import Subject
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.latents import latents_on
from unweave.validate.interventions.scrubbing import RowLosses, recovered, row_losses
from unweave.validate.placed import Placed, run_with
from unweave.validate.prediction import predicted_latents


class ClaimsScrubbed(NamedTuple):
    """Loss recovered when all latents are resampled by what is said of them."""

    own: tuple[Interval, Interval]
    """By each latent's own claim: cross-entropy and KL."""
    shuffled: tuple[Interval, Interval]
    """By the claim of another latent."""
    agreeing: float
    """Mean share of places that a firing place is exchanged among, under the own claims."""
    alone: float
    """Share of firing places that no other place agrees with under the own claims."""


@torch.no_grad()
def scrub_claims(
    subject: Subject,
    one: Placed,
    claims: Sequence[Claim],
    vocabulary: Vocabulary,
    rows: Int[Tensor, "rows pos"],
    *,
    seed: int = 0,
    batch: int = 16,
) -> ClaimsScrubbed:
    """Scrub every latent at once; what the dictionary does not reproduce stays."""
    values = latents_on(subject, one, rows, batch=batch).values
    flat = values.flatten(0, 1)
    keys = _keys(claims, rows, vocabulary)
    random = torch.Generator().manual_seed(seed)
    alive = (flat != 0).any(0).nonzero()[:, 0]
    moved = keys.clone()
    # Every latent alive gets the claim of the next one in a random circle: none keeps its own.
    circle = alive[torch.randperm(len(alive), generator=random)]
    moved[:, circle] = keys[:, circle.roll(1)]
    how = {
        "own": resampled(flat, keys, alive, random),
        "shuffled": resampled(flat, moved, alive, random),
        "random": resampled(flat, torch.zeros_like(keys), alive, random),
        "original": flat,
    }
    losses = {
        name: _losses(subject, one, rows, each.view_as(values), batch) for name, each in how.items()
    }
    agreeing, alone = _sizes(flat, keys, alive)
    ends = losses["original"], losses["random"]
    return ClaimsScrubbed(
        recovered(ends[0], losses["own"], ends[1]),
        recovered(ends[0], losses["shuffled"], ends[1]),
        agreeing,
        alone,
    )


def resampled(
    values: Float[Tensor, "places latents"],
    keys: Float[Tensor, "places latents"],
    alive: Int[Tensor, " some"],
    random: torch.Generator,
) -> Float[Tensor, "places latents"]:
    """Each latent's activations permuted among places of equal key; its total stays."""
    out = values.clone()
    for latent in alive.tolist():
        key = keys[:, latent]
        mixed = torch.randperm(len(key), generator=random)
        start, end = key.argsort(stable=True), mixed[key[mixed].argsort(stable=True)]
        out[start, latent] = values[end, latent]
    return out


def _keys(claims: Sequence[Claim], rows: Tensor, vocabulary: Vocabulary) -> Tensor:
    said = predicted_latents(claims, rows.numpy(), vocabulary)
    dense = np.tile(said.background, (rows.numel(), 1))
    place = np.repeat(np.arange(rows.numel()), np.diff(said.token_indptr))
    dense[place, said.latent] = said.value
    found = torch.from_numpy(dense).float().view(*rows.shape, -1)
    return found[:, 1:].flatten(0, 1)


def _sizes(values: Tensor, keys: Tensor, alive: Tensor) -> tuple[float, float]:
    share, alone, fired = 0.0, 0.0, 0
    for latent in alive.tolist():
        _, place, counts = keys[:, latent].unique(return_inverse=True, return_counts=True)
        here = counts[place[values[:, latent] != 0]]
        share += float(here.sum()) / len(keys)
        alone += float((here == 1).sum())
        fired += len(here)
    return share / max(1, fired), alone / max(1, fired)


def _losses(subject: Subject, one: Placed, rows: Tensor, values: Tensor, batch: int) -> RowLosses:
    found = []
    for group, dense in zip(rows.split(batch), values.split(batch), strict=True):

        def put(code: SparseCode, _: tuple[int, int], dense: Tensor = dense) -> SparseCode:
            return SparseCode.from_dense(dense.flatten(0, 1).to(code.value))

        original = subject.run(group).logits
        run = run_with(subject, group, [one], edit=put, keep_error=True)
        assert original is not None
        assert run.logits is not None
        found.append(row_losses(run.logits.float(), group, original.float()))
    return RowLosses(*(np.concatenate(part) for part in zip(*found, strict=True)))
