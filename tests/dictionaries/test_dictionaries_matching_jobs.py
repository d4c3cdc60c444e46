"""A planted diagonal is found as one job; sets of features and chance are not taken for one."""

import pytest
import torch

from unweave.dictionaries.attention.feature_basis import BIAS, START, QKBasis, QKCodes
from unweave.dictionaries.attention.jobs import JobSettings, accounted, find_jobs
from unweave.dictionaries.attention.matching_jobs import (
    MatchingSettings,
    find_matching,
    interaction,
    reindexed,
)
from unweave.errors import UserError
from unweave.subject.scores import Scoring

N, HEADS, D_HEAD = 24, 3, 32
PLAIN = Scoring(scale=1.0, cos=None, sin=None, theta=None)
DEALT = torch.randperm(N, generator=torch.Generator().manual_seed(9))
"""Key feature DEALT[a] is the partner of query feature a."""


def text(seed=1):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for extra in (1, 2):
        code = torch.zeros(30, 10, N + extra)
        on = torch.randint(N, (30, 10, 2), generator=generator)
        code.scatter_(2, on, 0.5 + torch.rand(on.shape, generator=generator))
        code[..., N] = 1
        made.append(code)
    made[1][:, 0] = 0
    made[1][:, 0, -1] = 1
    return QKCodes(*made)


def basis(matching=1.0, popular=0.0, noise=0.05, seed=0):
    """Heads 0 and 2 match features with their partners, all heads draw to popular keys."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.linalg.qr(torch.randn(D_HEAD, D_HEAD, generator=generator)).Q
    queries = noise * torch.randn(N + 1, HEADS, D_HEAD, generator=generator)
    keys = noise * torch.randn(N + 2, HEADS, D_HEAD, generator=generator)
    for head in (0, 2):
        queries[:N, head] += matching * tokens[:N]
        keys[DEALT, head] += tokens[:N]
    queries[:N] += popular * (1 + torch.rand(N, 1, 1, generator=generator)) * tokens[-1]
    keys[:N] += 3 * torch.rand(N, 1, 1, generator=generator) * tokens[-1]
    keys[N] += 5 * tokens[-1]
    q_ids, k_ids = torch.arange(N + 1), torch.arange(N + 2)
    q_ids[N], k_ids[N:] = BIAS, torch.tensor([BIAS, START])
    return QKBasis(queries, keys, q_ids, k_ids, PLAIN)


def diagonal():
    return torch.zeros(N + 1, N + 2, dtype=torch.bool).index_put(
        (torch.arange(N), DEALT), torch.tensor(True)
    )


@pytest.mark.parametrize("popular", [0.0, 0.3])
def test_a_planted_diagonal_is_found_whatever_else_draws_attention(popular):
    found = interaction(text(), basis(popular=popular))
    job = find_matching(found)
    assert torch.equal(job.partners, diagonal())
    assert job.heads[1] == 0
    assert job.heads[[0, 2]].tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert job.share > 0.6
    assert job.mask().sum() == 2 * N
    # The control: heads that match nothing.
    nothing = find_matching(interaction(text(), basis(matching=0.0, popular=popular)))
    assert (nothing.partners & diagonal()).sum() < N / 3


def test_few_products_hold_no_diagonal():
    tensor = diagonal()[..., None] * torch.tensor([1.0, 0.0, 1.0])
    settings = JobSettings(jobs=4, rounds=60, starts=1)
    assert accounted(tensor, find_jobs(tensor, seed=0, settings=settings)).sum() < 0.5


def test_what_one_side_does_alone_is_no_interaction():
    plain = basis(popular=1.0, noise=0.0, matching=0.0)
    found = interaction(text(), plain)
    assert not found.tensor[N].any()
    assert not found.tensor[:, N:].any()
    everyone = plain._replace(queries=plain.queries[:1].expand(N + 1, -1, -1))
    assert interaction(text(), everyone).tensor.abs().max() < 1e-5
    q, k = found.queries / found.queries.sum(), found.keys / found.keys.sum()
    assert torch.einsum("abh,b->ah", found.tensor, k).abs().max() < 1e-5
    assert torch.einsum("abh,a->bh", found.tensor, q).abs().max() < 1e-5
    with pytest.raises(UserError, match="two tokens"):
        interaction(QKCodes(text().queries[:, :1], text().keys[:, :1]), plain)


def test_a_head_of_its_own_may_be_asked_for_and_near_partners_counted():
    found = interaction(text(), basis())
    alone = find_matching(found, heads=torch.tensor([0.0, 0.0, 1.0]))
    assert alone.heads.tolist() == [0, 0, 1]
    assert torch.equal(alone.partners, diagonal())
    many = find_matching(found, settings=MatchingSettings(close=0.05))
    assert many.partners.sum() > 1.5 * N
    assert many.share > find_matching(found).share


def test_reindexing_keeps_counts_and_breaks_the_relation():
    found = interaction(text(), basis())
    job = find_matching(found)
    other = reindexed(job, torch.arange(N + 2) < N, seed=1)
    assert other.partners.sum() == job.partners.sum()
    assert not other.partners[:, N:].any()
    assert (other.partners & job.partners).sum() < N / 3
    assert torch.equal(other.heads, job.heads)
