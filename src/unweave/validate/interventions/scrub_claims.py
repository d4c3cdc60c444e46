"""Descriptions scrubbed: a latent's activation comes from another place that reads the same to it.

A claim predicts an expected activation for every place. Places for which it predicts the same are
claimed to be interchangeable; every latent of a dictionary, or of several that stand together, is
resampled among them, each on its own, and the loss is compared with resampling among all places (0)
and with the original (1). The control gives each latent the claim of another one of its
dictionary. Two places count as predicted the same only where the numbers are equal, which groups by
the keys of the rules.
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
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.bootstrap import Interval
from unweave.validate.interventions.latents import latents_on
from unweave.validate.interventions.scrubbing import RowLosses, recovered, row_losses
from unweave.validate.placed import Edit, Placed, run_with
from unweave.validate.prediction import predicted_latents

BATCH = 16
"""Rows run together; no number depends on it."""


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


class Resampling(NamedTuple):
    """One dictionary's code of some rows, resampled by what is said of its latents."""

    codes: dict[str, list[SparseCode]]
    """By `own` claims, `shuffled` ones and at `random`: of each batch of rows."""
    agreeing: float
    """Shares of places that firing places are exchanged among, summed over those."""
    alone: float
    """Firing places that no other place agrees with."""
    fired: int
    """Firing places."""


def scrub_claims(
    subject: Subject,
    one: Placed,
    claims: Sequence[Claim],
    vocabulary: Vocabulary,
    rows: Int[Tensor, "rows pos"],
    *,
    seed: int = 0,
) -> ClaimsScrubbed:
    """Scrub every latent of one dictionary at once; what it does not reproduce stays."""
    found = resampling(subject, one, claims, vocabulary, rows, seed=seed)
    return scrub_resampled(subject, [(one, found)], rows)


@torch.no_grad()
def resampling(
    subject: Subject,
    one: Placed,
    claims: Sequence[Claim],
    vocabulary: Vocabulary,
    rows: Int[Tensor, "rows pos"],
    *,
    seed: int = 0,
) -> Resampling:
    """Draw what each latent is set to; `claims` has one for each."""
    random = torch.Generator().manual_seed(seed)
    values = latents_on(subject, one, rows, batch=BATCH).values
    shape, flat = values.shape, values.flatten(0, 1)
    keys = _keys(claims, rows, vocabulary)
    alive = (flat != 0).any(0).nonzero()[:, 0]
    moved = keys.clone()
    # Every latent alive gets the claim of the next one in a random circle: none keeps its own.
    circle = alive[torch.randperm(len(alive), generator=random)]
    moved[:, circle] = keys[:, circle.roll(1)]
    codes = {}
    for how, key in (("own", keys), ("shuffled", moved), ("random", torch.zeros_like(keys))):
        drawn = resampled(flat, key, alive, random).view(shape)
        codes[how] = [SparseCode.from_dense(each.flatten(0, 1)) for each in drawn.split(BATCH)]
    return Resampling(codes, *_sizes(flat, keys, alive))


@torch.no_grad()
def scrub_resampled(
    subject: Subject,
    standing: Sequence[tuple[Placed, Resampling]],
    rows: Int[Tensor, "rows pos"],
    *,
    progress: Progress = QUIET,
) -> ClaimsScrubbed:
    """Run one network with all latents of all these dictionaries resampled."""
    losses = _losses(subject, standing, rows, progress)
    drawn = [new for _, new in standing]
    fired = max(1, sum(one.fired for one in drawn))
    return ClaimsScrubbed(
        recovered(losses["original"], losses["own"], losses["random"]),
        recovered(losses["original"], losses["shuffled"], losses["random"]),
        sum(one.agreeing for one in drawn) / fired,
        sum(one.alone for one in drawn) / fired,
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


def _sizes(values: Tensor, keys: Tensor, alive: Tensor) -> tuple[float, float, int]:
    share, alone, fired = 0.0, 0.0, 0
    for latent in alive.tolist():
        _, place, counts = keys[:, latent].unique(return_inverse=True, return_counts=True)
        here = counts[place[values[:, latent] != 0]]
        share += float(here.sum()) / len(keys)
        alone += float((here == 1).sum())
        fired += len(here)
    return share, alone, fired


def _losses(
    subject: Subject,
    standing: Sequence[tuple[Placed, Resampling]],
    rows: Tensor,
    progress: Progress,
) -> dict[str, RowLosses]:
    parts = [one for one, _ in standing]
    found: dict[str, list[RowLosses]] = {"original": [], "own": [], "shuffled": [], "random": []}
    with progress.task("Running what is resampled", total=len(rows), unit="rows") as advance:
        for at, group in enumerate(rows.split(BATCH)):
            original = subject.run(group).logits
            assert original is not None
            found["original"].append(row_losses(original.float(), group, original.float()))
            for how in ("own", "shuffled", "random"):
                edits = {one.name: _putting(new.codes[how][at]) for one, new in standing}
                run = run_with(subject, group, parts, edit=edits, keep_error=True)
                assert run.logits is not None
                found[how].append(row_losses(run.logits.float(), group, original.float()))
            advance(len(group))
    return {
        how: RowLosses(*(np.concatenate(part) for part in zip(*each, strict=True)))
        for how, each in found.items()
    }


def _putting(new: SparseCode) -> Edit:
    def put(code: SparseCode, _: tuple[int, int]) -> SparseCode:
        return SparseCode(new.support, new.value.to(code.value))

    return put
