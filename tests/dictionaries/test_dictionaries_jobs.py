"""Planted jobs are found; the same numbers at random places have none."""

import pytest
import torch

from unweave.dictionaries.attention.jobs import (
    JobSettings,
    accounted,
    count_jobs,
    divergence,
    find_jobs,
    shares,
    shuffled,
)

SHAPE = 30, 24, 4
SETTINGS = JobSettings(jobs=6, rounds=60, starts=2)
PLANTED = (
    (range(8), range(6), (0,)),
    (range(8, 14), range(4, 12), (1, 2)),
    (range(20, 30), (23,), (0, 1, 2, 3)),
)


def planted(seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    tensor = noise * torch.rand(SHAPE, generator=generator)
    for queries, keys, heads in PLANTED:
        for axis, places in enumerate((queries, keys, heads)):
            load = torch.zeros(SHAPE[axis])
            load[list(places)] = 0.5 + torch.rand(len(places), generator=generator)
            loads = load if axis == 0 else torch.einsum("...,x->...x", loads, load)
        tensor += loads
    return tensor


def best_match(jobs, which):
    """Cosine of the job nearest to a planted one, as tensors of ones and zeros."""
    want = torch.zeros(SHAPE)
    queries, keys, heads = (list(x) for x in PLANTED[which])
    want[torch.tensor(queries)[:, None, None], torch.tensor(keys)[:, None], heads] = 1
    return max(
        float((jobs.each(j) * want).sum() / (jobs.each(j).norm() * want.norm()))
        for j in range(len(jobs))
    )


@pytest.mark.parametrize(("noise", "count"), [(0.0, 3), (0.03, 6)])
def test_planted_jobs_are_found(noise, count):
    # Without noise there is nothing for more jobs to do than to split the true ones.
    settings = SETTINGS.model_copy(update={"jobs": count})
    jobs = find_jobs(planted(noise=noise), seed=0, settings=settings)
    assert min(best_match(jobs, which) for which in range(3)) > 0.85


def test_planted_jobs_are_counted_and_shuffled_ones_are_not():
    tensor = planted()
    settings = SETTINGS.model_copy(update={"jobs": 3})
    count, mine, chance = count_jobs(tensor, seed=0, settings=settings)
    assert count == 3
    assert mine.sum() > 0.95
    assert chance.sum() < 0.6
    again, *_ = count_jobs(shuffled(tensor, seed=7), seed=0, settings=settings)
    assert again <= 1


def test_a_shuffled_tensor_is_no_fewer_jobs():
    tensor = planted()
    real = divergence(tensor, find_jobs(tensor, seed=0, settings=SETTINGS))
    other = shuffled(tensor, seed=1)
    assert torch.equal(other.flatten().sort().values, tensor.flatten().sort().values)
    assert divergence(other, find_jobs(other, seed=0, settings=SETTINGS)) > real + 0.5


def test_shares_are_a_partition_with_a_rest():
    tensor = planted(noise=0.1)
    jobs = find_jobs(tensor, seed=0, settings=SETTINGS)
    found = shares(tensor, jobs)
    assert found.min() >= 0
    assert found.sum(0).max() < 1 + 1e-5
    assert float(accounted(tensor, jobs).sum()) <= 1
    empty = tensor.clone()
    empty[3] = 0
    assert not shares(empty, jobs)[:, 3].any()


def test_factors_are_sparse_and_heaviest_first():
    jobs = find_jobs(planted(), seed=0, settings=SETTINGS)
    assert torch.equal(jobs.weight, jobs.weight.sort(descending=True).values)
    for factor in (jobs.queries, jobs.keys, jobs.heads):
        assert torch.allclose(factor.sum(1), torch.ones(len(jobs)), atol=1e-5)
    assert (jobs.queries == 0).float().mean() > 0.4


def test_the_same_seed_gives_the_same_jobs():
    one, same = (find_jobs(planted(), seed=4, settings=SETTINGS) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
