"""Starting directions: unit rows, seeded, and where the data is."""

from functools import partial

import pytest
import torch

from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.coders.starts import (
    atom_rows,
    cluster_rows,
    data_rows,
    previous_rows,
    subspace_rows,
)
from unweave.errors import UserError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def narrow(rows=400, d=24, rank=6, seed=1):
    """Vectors around a mean that fill 6 of 24 dimensions, but for a thousandth of noise."""
    x = draw(rows, rank, seed=seed) @ draw(rank, d, seed=seed + 1)
    return x + 5 * draw(1, d, seed=seed + 2) + 0.001 * draw(rows, d, seed=seed + 3)


def older(n=10, d=24):
    W = draw(n, d, seed=9) * torch.linspace(0.1, 2, n)[:, None]
    return Coefficients(lambda x: x @ W.T, W)


STARTS = {
    "data": data_rows,
    "subspace": subspace_rows,
    "clusters": cluster_rows,
    "atoms": partial(atom_rows, k=3),
    "previous": partial(previous_rows, previous=older()),
}


@pytest.mark.parametrize("name", STARTS)
def test_rows_are_unit_vectors_as_many_as_asked_for_and_seeded(name):
    x = narrow()
    for latents in (4, 100):
        rows = STARTS[name](x, latents, seed=3)
        assert rows.shape == (latents, 24)
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(latents))
        assert torch.equal(rows, STARTS[name](x, latents, seed=3))
    assert not torch.equal(rows, STARTS[name](x, latents, seed=4))


@pytest.mark.parametrize("name", ["data", "subspace", "clusters", "atoms"])
def test_starts_lie_within_the_active_subspace_and_random_ones_do_not(name):
    x = narrow()
    basis = torch.linalg.svd(x - x.mean(0), full_matrices=False).Vh[:6]
    rows = STARTS[name](x, 50, seed=0)
    assert (rows @ basis.T).norm(dim=1).min() > 0.999
    random = torch.nn.functional.normalize(draw(50, 24, seed=5))
    assert (random @ basis.T).norm(dim=1).mean() < 0.6


def test_the_subspace_holds_the_variance_asked_for_and_is_filled_evenly():
    x = draw(2000, 8) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.2, 0.1, 0.1])
    rows = subspace_rows(x, 3000, seed=0, variance=0.98)  # 64 + 16 + 4 of 85.3 is 98.5 %
    assert rows[:, 3:].square().sum(1).max() < 0.01
    torch.testing.assert_close(
        rows.square().mean(0)[:3], torch.full((3,), 1 / 3), atol=0.03, rtol=0
    )
    assert torch.linalg.matrix_rank(subspace_rows(x, 100, seed=0, variance=1.0)) == 8
    with pytest.raises(UserError, match="share of variance"):
        subspace_rows(x, 10, seed=0, variance=1.5)


def test_data_rows_use_no_vector_twice_while_there_are_enough():
    x = narrow()
    assert len(data_rows(x, 400, seed=0).unique(dim=0)) == 400
    assert len(data_rows(x, 900, seed=0).unique(dim=0)) < 400


def test_a_vector_without_a_direction_gets_one():
    x = torch.zeros(30, 5)
    rows = data_rows(x, 10, seed=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(10))


def test_cluster_rows_point_at_planted_clusters():
    centres = 6 * torch.eye(8)
    x = centres.repeat(50, 1) + 0.3 * draw(400, 8)
    wanted = torch.nn.functional.normalize(centres - centres.mean(0))
    rows = cluster_rows(x, 16, seed=0)
    assert (wanted @ rows.T).max(1).values.min() > 0.95


def test_atom_rows_cover_rare_directions_that_random_vectors_miss():
    x = draw(2000, 1, seed=1) @ draw(1, 30, seed=2)
    rare = 4 * torch.eye(30)[:8]
    x[torch.arange(8) * 250] = rare
    wanted = torch.nn.functional.normalize(rare - x.mean(0))
    atoms = (wanted @ atom_rows(x, 20, seed=0, k=1).T).max(1).values
    random = (wanted @ data_rows(x, 20, seed=0).T).max(1).values
    assert atoms.min() > 0.9
    assert random.median() < 0.9


def test_previous_rows_come_first_those_that_write_most_first():
    x, previous = narrow(), older()
    rows = previous_rows(x, 13, previous, seed=0)
    written = ((x @ previous.W_dec.T).square().sum(0) * previous.W_dec.square().sum(1)).argsort(
        descending=True
    )
    torch.testing.assert_close(
        rows[:10], torch.nn.functional.normalize(previous.W_dec)[written], atol=1e-6, rtol=0
    )
    few = previous_rows(x, 3, previous, seed=0)
    assert torch.equal(few, rows[:3])
    torch.testing.assert_close(rows[10:], data_rows(x, 3, seed=1))
