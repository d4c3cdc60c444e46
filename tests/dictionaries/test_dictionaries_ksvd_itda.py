"""K-SVD and MOD find what was planted, ITDA keeps its bound and knows where atoms came from."""

import pytest
import torch

from unweave.dictionaries.coders.itda import ITDASettings, itda, jaccard
from unweave.dictionaries.coders.ksvd import AlternatingSettings, ksvd, mod
from unweave.errors import UserError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def planted(latents=24, d=20, k=2, rows=1500, *, signed=True, seed=10):
    """Unit atoms and rows of k of them each, with 2 % noise."""
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(latents, d, generator=g))
    latent = torch.rand(rows, latents, generator=g).topk(k, dim=1).indices
    value = 0.5 + torch.rand(rows, k, generator=g)
    if signed:
        value *= torch.randint(0, 2, (rows, k), generator=g) * 2 - 1
    x = torch.zeros(rows, latents).scatter(1, latent, value) @ W
    return W, x + 0.02 * x.std() * torch.randn(x.shape, generator=g)


def shuffled(x, seed=2):
    """The same marginal distribution of every coordinate, and no atoms."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([column[torch.randperm(len(x), generator=g)] for column in x.T], dim=1)


def recovered(truth, found, *, signed=True):
    """Share of true atoms that some found atom matches at cosine 0.95."""
    cosine = truth @ torch.nn.functional.normalize(found).T
    best = (cosine.abs() if signed else cosine).max(1).values
    return (best > 0.95).float().mean().item()


def fvu(coder, x):
    error = x - coder.decode(coder.encode(x))
    return (error.square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize("learn", [ksvd, mod])
@pytest.mark.parametrize("signed", [True, False])
def test_a_planted_dictionary_is_recovered_and_from_shuffled_data_it_is_not(learn, signed):
    W, x = planted(signed=signed)
    settings = AlternatingSettings(n_latents=24, k=2, sweeps=25, signed=signed, seed=7)
    found = learn(x, settings)
    assert recovered(W, found.directions(), signed=signed) >= 0.9
    control = learn(shuffled(x), settings)
    assert recovered(W, control.directions(), signed=signed) < 0.3
    held_out = planted(rows=4000, signed=signed)[1][2000:]
    assert fvu(found, held_out) < 0.05
    assert fvu(control, held_out) > 3 * fvu(found, held_out)


def test_atoms_are_unit_vectors_and_depend_on_the_seed_alone():
    _, x = planted(rows=300)
    settings = AlternatingSettings(n_latents=20, k=2, sweeps=3, signed=True)
    one, two = ksvd(x, settings), ksvd(x, settings)
    other = ksvd(x, settings.model_copy(update={"seed": 1}))
    torch.testing.assert_close(one.directions().norm(dim=1), torch.ones(20))
    assert torch.equal(one.directions(), two.directions())
    assert not torch.equal(one.directions(), other.directions())


def test_sweeps_lower_the_error():
    _, x = planted()
    error = [
        fvu(ksvd(x, AlternatingSettings(n_latents=24, k=2, sweeps=n, signed=True)), x)
        for n in (1, 4, 16)
    ]
    assert error[0] > error[1] > error[2]


def test_idle_and_twin_atoms_go_where_the_error_is():
    # A few directions that everything uses, and one row that none of them describes.
    g = torch.Generator().manual_seed(4)
    x = torch.randint(1, 4, (200, 4), generator=g).float() @ torch.eye(4, 12)
    x = torch.cat([x, -x, 9 * torch.eye(12)[10:11], -9 * torch.eye(12)[10:11]])
    found = ksvd(x, AlternatingSettings(n_latents=12, k=2, sweeps=6, signed=True))
    assert torch.isfinite(found.directions()).all()
    assert found.directions()[:, 10].abs().max() > 0.99


def test_more_atoms_than_rows_are_refused():
    with pytest.raises(UserError, match="40 atoms"):
        ksvd(draw(30, 8), AlternatingSettings(n_latents=40, k=2))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("batch_rows", [37, 1000])
def test_every_vector_is_within_tau_or_an_atom(signed, batch_rows):
    x = draw(600, 24, seed=3) @ draw(24, 24, seed=4)
    settings = ITDASettings(k=4, tau=0.25, batch_rows=batch_rows, signed=signed)
    found = itda(x, settings)
    assert 24 < found.n_latents < 600
    left = found.left(x)
    assert left.max() <= 0.25
    assert left[found.source].max() < 1e-5
    strangers = draw(600, 24, seed=5) @ draw(24, 24, seed=4)
    assert (found.left(strangers) > 0.25).any(), "the bound is for what was seen"


def test_one_pass_alone_does_not_keep_the_bound():
    x = draw(600, 24, seed=3) @ draw(24, 24, seed=4)
    found = itda(x, ITDASettings(k=4, tau=0.25, sweeps=1))
    assert found.left(x).max() > 0.25


def test_large_batches_take_hardly_more_atoms_than_batches_of_one_row():
    x = draw(300, 24, seed=3) @ draw(24, 24, seed=4)
    one, many = (
        itda(x, ITDASettings(k=4, tau=0.25, batch_rows=rows, sweeps=1)).n_latents
        for rows in (1, 300)
    )
    assert one <= many < 1.2 * one


def test_atoms_are_activations_with_their_source():
    x = draw(300, 10, seed=3) * 5
    found = itda(x, ITDASettings(k=2, tau=0.3))
    unit = torch.nn.functional.normalize(x)
    torch.testing.assert_close(found.directions(), unit[found.source])
    assert len(set(found.source.tolist())) == found.n_latents


def test_duplicates_are_dropped():
    x = draw(40, 60, seed=3)
    found = itda(x.repeat(5, 1) * torch.arange(1, 201)[:, None], ITDASettings(k=1, tau=0.05))
    assert found.n_latents == 40
    assert found.source.max() < 40
    both = torch.cat([x, -x])
    assert itda(both, ITDASettings(k=1, tau=0.05)).n_latents == 40
    assert itda(both, ITDASettings(k=1, tau=0.05, signed=False)).n_latents == 80


def test_a_smaller_tau_takes_more_atoms_and_a_limit_holds():
    x = draw(500, 16, seed=3)
    sizes = [itda(x, ITDASettings(k=3, tau=tau)).n_latents for tau in (0.5, 0.3, 0.1)]
    assert sizes[0] < sizes[1] < sizes[2]
    limited = itda(x, ITDASettings(k=3, tau=0.1, n_latents=20))
    assert limited.full
    assert limited.n_latents == 20


def test_silent_rows_become_no_atoms():
    found = itda(torch.zeros(20, 4), ITDASettings(k=2, tau=0.1))
    assert found.n_latents == 0
    x = torch.ones(2, 4)
    assert torch.equal(found.decode(found.encode(x)), torch.zeros(2, 4))


def test_networks_that_read_alike_share_atoms_and_strangers_do_not():
    base = draw(400, 16, seed=3)
    settings = ITDASettings(k=4, tau=0.3)
    rotation = torch.linalg.qr(draw(16, 16, seed=6)).Q
    first = itda(base, settings)
    rotated = itda(3 * base @ rotation, settings)
    near = itda(base + 0.05 * draw(400, 16, seed=7), settings)
    stranger = itda(draw(400, 16, seed=8), settings)
    assert jaccard(first, first) == 1
    assert jaccard(first, rotated) > 0.9, "only the geometry counts"
    chance = jaccard(first, stranger)
    assert jaccard(first, near) > chance + 0.2
