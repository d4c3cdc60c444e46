"""Jobs: what a block's heads do together, as a few sets of query features, key features and heads.

The job tensor says how much each (query feature, key feature, head) contributes to scores. It is
taken apart by non-negative CP (Wynroe & Sharkey 2024 name CP, NMF and Tucker),

    W[a, b, h] ~ sum_r weight_r u_r[a] v_r[b] w_r[h],    u, v, w >= 0, each summing to 1,

fitted by the generalised KL divergence (CP-APR, Chi & Kolda 2012): multiplicative updates, which
keep sums, do not live off a few large entries as squares do, and lead to sparse factors by
themselves; what is left below a small share of a factor's largest entry is set to zero.

An entry belongs to job r by the share of it that the job accounts for, shares of all jobs summing
to at most 1. So a job is itself a mask over the tensor, and the jobs' scores plus a rest are the
score.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor


class JobSettings(BaseModel):
    """How a tensor is taken apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    jobs: PositiveInt = 16
    """Components; more than there are jobs split some."""
    rounds: PositiveInt = 200
    """Updates of all three factors."""
    least: float = Field(default=0.02, ge=0, lt=1)
    """Entries of a factor below this share of its largest are set to zero."""
    starts: PositiveInt = 3
    """Random starts; the best fit is kept."""
    tiny: PositiveFloat = 1e-12
    """Keeps quotients finite."""


class Jobs(NamedTuple):
    """Components, the heaviest first; the factors of each sum to 1."""

    weight: Float[Tensor, " jobs"]
    """Share of the tensor's mass that each stands for."""
    queries: Float[Tensor, "jobs queries"]
    """Loadings of query features."""
    keys: Float[Tensor, "jobs keys"]
    """Loadings of key features."""
    heads: Float[Tensor, "jobs heads"]
    """Loadings of heads."""

    def __len__(self) -> int:
        """Number of jobs."""
        return len(self.weight)

    def each(self, job: int) -> Float[Tensor, "queries keys heads"]:
        """What one job says the tensor is, as a share of its mass."""
        outer = self.queries[job, :, None, None] * self.keys[job, :, None] * self.heads[job]
        return self.weight[job] * outer

    def sizes(self) -> list[tuple[int, int, int]]:
        """Query features, key features and heads that each job has."""
        factors = (self.queries, self.keys, self.heads)
        counts = torch.stack([(factor > 0).sum(1) for factor in factors], 1)
        return [(q, k, h) for q, k, h in counts.tolist()]


def find_jobs(
    tensor: Float[Tensor, "queries keys heads"], *, seed: int, settings: JobSettings | None = None
) -> Jobs:
    """Take a non-negative tensor apart; jobs come in the order of their weight."""
    settings = settings or JobSettings()
    mass = tensor / tensor.sum().clamp_min(settings.tiny)
    fits = [
        _fit(mass, seed=seed * settings.starts + start, settings=settings)
        for start in range(settings.starts)
    ]
    return min(fits, key=lambda jobs: divergence(mass, jobs))


def divergence(tensor: Float[Tensor, "queries keys heads"], jobs: Jobs) -> float:
    """Generalised KL divergence, nats, of a tensor (scaled to mass 1) from what the jobs say."""
    mass = tensor / tensor.sum()
    model = together(jobs)
    some = mass > 0
    logs = (mass[some] / model[some].clamp_min(1e-12)).log()
    return float((mass[some] * logs).sum() - mass.sum() + model.sum())


def together(jobs: Jobs) -> Float[Tensor, "queries keys heads"]:
    """The sum of what all jobs say."""
    return torch.einsum("r,ra,rb,rh->abh", *jobs)


def shares(
    tensor: Float[Tensor, "queries keys heads"], jobs: Jobs
) -> Float[Tensor, "jobs queries keys heads"]:
    """How much of each entry each job accounts for; at most 1 in all, 0 where there is nothing.

    An entry of which the jobs together say more than there is goes to them in proportion.
    """
    mass = tensor / tensor.sum()
    each = torch.stack([jobs.each(job) for job in range(len(jobs))])
    whole = torch.maximum(each.sum(0), mass)
    found = each / whole.clamp_min(1e-30)
    return torch.where(mass > 0, found, 0)


def accounted(tensor: Float[Tensor, "queries keys heads"], jobs: Jobs) -> Float[Tensor, " jobs"]:
    """Share of the tensor's mass that each job accounts for."""
    return (shares(tensor, jobs) * tensor).sum((1, 2, 3)) / tensor.sum()


def shuffled(
    tensor: Float[Tensor, "queries keys heads"], *, seed: int
) -> Float[Tensor, "queries keys heads"]:
    """The control: the same entries at random places, so that nothing is said by who goes with
    whom."""
    generator = torch.Generator().manual_seed(seed)
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)


def count_jobs(
    tensor: Float[Tensor, "queries keys heads"],
    *,
    seed: int,
    settings: JobSettings | None = None,
    controls: int = 3,
) -> tuple[int, Float[Tensor, " jobs"], Float[Tensor, " jobs"]]:
    """How many jobs stand for more of the tensor than the best job of a shuffled one does.

    As one counts factors by parallel analysis (Horn 1965). Gives the count, what each job accounts
    for, largest first, and the same of the shuffled tensors on average.
    """
    mine = accounted(tensor, find_jobs(tensor, seed=seed, settings=settings))
    mine = mine.sort(descending=True).values
    theirs = []
    for control in range(controls):
        other = shuffled(tensor, seed=seed + control + 1)
        found = accounted(other, find_jobs(other, seed=seed, settings=settings))
        theirs.append(found.sort(descending=True).values)
    chance = torch.stack(theirs)
    return int((mine > chance.max()).sum()), mine, chance.mean(0)


def _fit(mass: Tensor, *, seed: int, settings: JobSettings) -> Jobs:
    """One random start of the multiplicative updates."""
    generator = torch.Generator().manual_seed(seed)
    factors = [
        _normed(torch.rand(settings.jobs, size, generator=generator) + 0.1, settings.tiny)[0]
        for size in mass.shape
    ]
    weight = torch.full((settings.jobs,), 1 / settings.jobs)
    letters = "abh"
    for _ in range(settings.rounds):
        for axis, letter in enumerate(letters):
            others = [x for x in range(3) if x != axis]
            model = torch.einsum("r,ra,rb,rh->abh", weight, *factors)
            quotient = mass / model.clamp_min(settings.tiny)
            rule = f"abh,r{letters[others[0]]},r{letters[others[1]]}->r{letter}"
            pulled = torch.einsum(rule, quotient, *(factors[x] for x in others))
            factors[axis], weight = _normed(factors[axis] * pulled * weight[:, None], settings.tiny)
    sparse = [_sparse(factor, settings.least) for factor in factors]
    order = weight.argsort(descending=True)
    return Jobs(weight[order], *(factor[order] for factor in sparse))


def _normed(factor: Tensor, tiny: float) -> tuple[Tensor, Tensor]:
    """Rows that sum to 1, and what they summed to."""
    total = factor.sum(1)
    return factor / total.clamp_min(tiny)[:, None], total


def _sparse(factor: Tensor, least: float) -> Tensor:
    """Without the entries that are small beside the row's largest; rows sum to 1 again."""
    kept = torch.where(factor >= least * factor.amax(1, keepdim=True), factor, 0)
    return kept / kept.sum(1, keepdim=True).clamp_min(1e-30)
