"""Matching jobs: heads that look for the partner of what the query holds, whichever that is.

To look for one's own token, or for what came after it, is a diagonal of the job tensor: as many
entries as there are tokens, and no few products of sets hold it (`jobs`). Here a job is instead one
relation between query features and key features, found from the weights and from how often
features occur, without labels. A softmax drops what a query gives to all keys alike; what a key
draws from all queries alike is a job of products. What is left of a pair is its interaction,

    I[a, b, h] = T[a, b, h] - sum_b' k[b'] T[a, b', h] - sum_a' q[a'] T[a', b, h] + (both),

T the score of a pair of features of strength 1 (`feature_scores`), averaged over distances as often
as a row has them, q and k the features' mean strengths, summing to 1. Heads do one job if their
interactions point the same way: `heads` is the leading direction over heads, and M = sum_h heads[h]
I[., ., h]. Partners are the pairs with

    M[a, b] >= close max_b' M[a, b']    or    M[a, b] >= close max_a' M[a', b].

Any tensor has pairs that are each other's best, and they hold much of it. That they are a job is
for removal to say: what happens without them, beside what happens without as many entries under
key features dealt at random (`reindexed`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unweave.dictionaries.attention.feature_basis import QKBasis, QKCodes
from unweave.errors import UserError


class MatchingSettings(BaseModel):
    """How near to the best a partner has to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    close: float = Field(default=0.7, gt=0, le=1)
    """Share of the best interaction of its query feature, or of its key feature."""
    least_head: float = Field(default=0.1, ge=0, lt=1)
    """Heads whose loading is below this share of the largest do not take part."""


class Interaction(NamedTuple):
    """What pairs of features add to scores beyond what either does alone."""

    tensor: Float[Tensor, "queries keys heads"]
    """I, per unit of both strengths; 0 where a bias or the start is one of the two."""
    queries: Float[Tensor, " queries"]
    """Mean strength of each query feature."""
    keys: Float[Tensor, " keys"]
    """Mean strength of each key feature."""


class MatchingJob(NamedTuple):
    """One relation between query features and key features."""

    partners: Bool[Tensor, "queries keys"]
    """Pairs that belong together."""
    heads: Float[Tensor, " heads"]
    """Loadings, summing to 1; 0 for heads that do not take part."""
    share: float
    """Share of the positive interaction, as much as it occurs, that partners hold."""

    def mask(self) -> Float[Tensor, "queries keys heads"]:
        """The job as a mask over the job tensor."""
        return (self.partners[..., None] & (self.heads > 0)).float()


@torch.no_grad()
def interaction(codes: QKCodes, basis: QKBasis) -> Interaction:
    """What pairs add to scores in some text, whose rows begin with the start token.

    Raises:
        UserError: rows of one token, which have no pair.
    """
    n = codes.queries.shape[1]
    if n < 2:
        raise UserError("Pairs of features interact in rows of two tokens or more; these have one")
    mean = basis.at(1) * (n - 1)
    for distance in range(2, n):
        mean += basis.at(distance) * (n - distance)
    mean /= n * (n - 1) / 2
    queries, keys = (
        code[:, 1:].mean((0, 1)) * (ids >= 0)
        for code, ids in ((codes.queries, basis.query_ids), (codes.keys, basis.key_ids))
    )
    q, k = (strength / strength.sum().clamp_min(1e-12) for strength in (queries, keys))
    tensor = mean - torch.einsum("b,abh->ah", k, mean)[:, None]
    tensor = tensor - torch.einsum("a,abh->bh", q, tensor)
    real = (basis.query_ids >= 0)[:, None] & (basis.key_ids >= 0)
    return Interaction(tensor * real[..., None], queries, keys)


def find_matching(
    found: Interaction,
    *,
    settings: MatchingSettings | None = None,
    heads: Float[Tensor, " heads"] | None = None,
) -> MatchingJob:
    """The relation that most of the heads' interaction is of; or that of given head loadings."""
    settings = settings or MatchingSettings()
    if heads is None:
        gram = torch.einsum("abh,abg->hg", found.tensor, found.tensor)
        leading = torch.linalg.eigh(gram)[1][:, -1]
        heads = (leading * leading.sum().sign()).clamp_min(0)
    heads = torch.where(heads >= settings.least_head * heads.max(), heads, 0)
    heads = heads / heads.sum().clamp_min(1e-12)
    together = found.tensor @ heads
    best_key = together.amax(1, keepdim=True)
    best_query = together.amax(0, keepdim=True)
    near = (together >= settings.close * best_key) | (together >= settings.close * best_query)
    partners = near & (together > 0)
    mass = together.clamp_min(0) * found.queries[:, None] * found.keys
    share = float(mass[partners].sum() / mass.sum().clamp_min(1e-12))
    return MatchingJob(partners, heads, share)


def reindexed(job: MatchingJob, real: Bool[Tensor, " keys"], *, seed: int) -> MatchingJob:
    """The control: the same relation with key features dealt at random among those in `real`."""
    places = real.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    dealt = places[torch.randperm(len(places), generator=generator)]
    partners = job.partners.clone()
    partners[:, places] = job.partners[:, dealt]
    return job._replace(partners=partners)
