"""Classical decompositions where each is known to be right, and where it is known to fail."""

import builtins

import pytest
import torch
from tiny_subject import tiny_llama

from unweave.dictionaries.baselines.ica import ica
from unweave.dictionaries.baselines.kmeans import cluster_centres, kmeans
from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.baselines.neurons import ExactMLP, coordinates, neurons
from unweave.dictionaries.baselines.nmf import halved, nmf
from unweave.dictionaries.baselines.pca import pca, principal_directions, svd, weight_svd
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.coders.fista import fista
from unweave.errors import UserError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows=800, d=16, seed=1):
    """Vectors around a mean with a spectrum that falls a hundredfold."""
    return draw(rows, d, seed=seed) * torch.logspace(0, -2, d) @ draw(d, d, seed=9) + 3 * draw(
        1, d, seed=8
    )


def fvu(coder, x):
    error = x - coder.decode(coder.encode(x))
    return (error.square().sum() / (x - x.mean(0)).square().sum()).item()


def matched(truth, found):
    """Best absolute cosine of each true direction with a found one."""
    unit = torch.nn.functional.normalize
    return (unit(truth) @ unit(found).T).abs().max(1).values


def test_pca_is_the_best_linear_code_of_its_rank():
    x = correlated()
    spectrum = torch.linalg.svdvals((x - x.mean(0)).double()).square()
    for n in (1, 4, 9):
        own = fvu(pca(x, n), x)
        assert own == pytest.approx((spectrum[n:].sum() / spectrum.sum()).item(), abs=1e-4)
        for seed in range(20):
            other = torch.linalg.qr(draw(16, n, seed=seed)).Q.T.contiguous()
            coder = Coefficients(lambda v, r=other: (v - x.mean(0)) @ r.T, other, b_dec=x.mean(0))
            assert fvu(coder, x) > own
    found = principal_directions(x)
    torch.testing.assert_close(
        ((x - found.mean) @ found.directions.T).var(0, correction=0),
        found.variance,
        rtol=1e-3,
        atol=1e-4,
    )
    assert (found.variance.diff() <= 0).all()


def test_choosing_coordinates_row_by_row_beats_the_same_few_for_all_rows():
    x = draw(500, 16)
    assert fvu(pca(x, k=4), x) < fvu(pca(x, 4), x) - 0.1


def test_svd_leaves_the_mean_in():
    x = correlated()
    cosine = torch.nn.functional.cosine_similarity(x.mean(0), svd(x, 1).directions()[0], dim=0)
    assert cosine.abs() > 0.99
    spectrum = torch.linalg.svdvals(x.double()).square()
    error = (x - svd(x, 3).decode(svd(x, 3).encode(x))).square().sum() / x.square().sum()
    assert error.item() == pytest.approx((spectrum[3:].sum() / spectrum.sum()).item(), rel=1e-2)


def test_weight_svd_finds_what_a_matrix_reads():
    planted = torch.linalg.qr(draw(16, 3)).Q.T
    W = draw(40, 3, seed=1) * torch.tensor([9.0, 3.0, 1.0]) @ planted + 0.01 * draw(40, 16, seed=2)
    coder = weight_svd(W, 3)
    assert matched(planted, coder.directions()).min() > 0.9
    assert weight_svd(W[:5]).n_latents == 5
    mean = torch.full((16,), 7.0)
    assert torch.equal(weight_svd(W, 3, b_dec=mean).encode(mean[None]).value, torch.zeros(3))


def sources(rows=4000, n=5, seed=1):
    """Independent and far from Gaussian: two uniform, two sparse with heavy tails, one coin."""
    g = torch.Generator().manual_seed(seed)
    s = torch.rand(rows, n, generator=g) * 2 - 1
    s[:, 2:4] = draw(rows, 2, seed=seed + 1) ** 3
    s[:, 4] = s[:, 4].sign()
    return (s - s.mean(0)) / s.std(0)


def test_ica_finds_independent_sources_where_pca_fails():
    mixing = draw(5, 5, seed=3)
    x = sources() @ mixing + 2
    independent, principal = ica(x, seed=5), pca(x)
    assert matched(mixing, independent.directions()).min() > 0.99
    assert matched(mixing, principal.directions()).min() < 0.9
    found = independent.encode(x).dense()
    correlation = torch.corrcoef(torch.cat([sources().T, found.T])).abs()[:5, 5:]
    assert correlation.max(1).values.min() > 0.99
    assert fvu(independent, x) < 1e-6


@pytest.mark.filterwarnings("ignore:FastICA did not converge")
def test_ica_of_gaussian_sources_finds_nothing():
    mixing = draw(5, 5, seed=3)
    found = ica(draw(4000, 5, seed=4) @ mixing, seed=5, steps=100)
    assert matched(mixing, found.directions()).min() < 0.9


def test_nmf_parts_and_values_are_never_negative_and_signs_survive():
    x = correlated(300, 8)
    coder = nmf(x, 12)
    code = coder.encode(x)
    assert (coder.halves >= 0).all()
    assert (code.value >= 0).all()
    assert (coder.directions() < 0).any()
    assert fvu(coder, x) < 0.1
    torch.testing.assert_close(halved(x)[:, :8] - halved(x)[:, 8:], x)


def test_nmf_finds_planted_parts_that_pca_mixes():
    g = torch.Generator().manual_seed(2)
    parts = torch.zeros(6, 24)
    for i in range(6):
        parts[i, 4 * i : 4 * i + 4] = 1
        parts[i, (4 * i + 5) % 24] = -1
    use = (torch.rand(1500, 6, generator=g) < 0.3) * torch.rand(1500, 6, generator=g)
    x = use @ parts
    assert matched(parts, nmf(x, 6).directions()).min() > 0.8
    assert matched(parts, pca(x, 6).directions()).min() < 0.8


def test_nmf_with_k_keeps_k_and_refits_them():
    x = correlated(300, 8)
    coder = nmf(x, 12, k=3)
    code = coder.encode(x)
    assert code.support.offsets.diff().max() == 3
    split = halved(x - coder.mean)
    kept = code.dense()
    slope = (split - kept @ coder.halves) @ coder.halves.T
    assert slope[kept > 0].abs().max() < 1e-3 * split.abs().max() ** 2
    whole = fista(split, coder.halves, 0.0, steps=500, tolerance=1e-4).dense()
    assert torch.equal((kept > 0) & (whole > 0), kept > 0), "the kept are among all"


def test_kmeans_codes_are_one_hot_and_find_planted_clusters():
    centres = 5 * torch.eye(6, 10)
    label = torch.arange(600) % 6
    x = centres[label] + 0.3 * draw(600, 10)
    coder = kmeans(x, 6, seed=1)
    code = coder.encode(x)
    assert torch.equal(code.value, torch.ones(600))
    assert torch.equal(code.support.offsets, torch.arange(601))
    found = code.support.latent
    assert all(len(found[label == i].unique()) == 1 for i in range(6)) == (len(found.unique()) == 6)
    assert fvu(kmeans(x, 12, seed=1), x) < 0.15
    assert fvu(kmeans(draw(600, 10), 12, seed=1), draw(600, 10)) > 0.5, "no clusters, no code"
    torch.testing.assert_close(coder.decode(code), coder.centres[found])
    distance = torch.cdist(x, coder.centres)
    assert torch.equal(distance.argmin(1), found)


def test_lloyd_ends_at_means_of_clusters_and_fills_empty_ones():
    x = draw(400, 5)
    centres = cluster_centres(x, 12, seed=0, steps=200)
    label = torch.cdist(x, centres).argmin(1)
    means = torch.stack([x[label == i].mean(0) for i in range(12)])
    torch.testing.assert_close(means, centres)
    repeated = torch.cat([torch.zeros(300, 5), x[:10] + 9])
    assert len(cluster_centres(repeated, 8, seed=0).unique(dim=0)) >= 7
    with pytest.raises(UserError, match="500 clusters"):
        cluster_centres(x, 500, seed=0)


def test_random_directions_are_the_control_that_loses():
    truth = torch.nn.functional.normalize(draw(40, 16))
    g = torch.Generator().manual_seed(1)
    active = torch.rand(600, 40, generator=g) < 0.06
    x = (active * (1 + torch.rand(600, 40, generator=g))) @ truth
    control = random_directions(x, 40, k=3, seed=2)
    assert matched(truth, control.directions()).mean() < 0.75
    assert 0.1 < fvu(control, x) < 1
    assert fvu(random_directions(x, 400, k=3, seed=2), x) < fvu(control, x)


def test_coordinates_are_the_site_and_the_largest_are_kept():
    x = draw(30, 12)
    assert torch.equal(coordinates(12).encode(x).dense(), x)
    few = coordinates(12, k=3)
    kept = few.encode(x).dense()
    assert torch.equal(kept != 0, x.abs() >= x.abs().topk(3).values[:, -1:])
    torch.testing.assert_close(few.decode(few.encode(x)), kept)
    seen_from = coordinates(12, k=12, b_dec=x.mean(0))
    torch.testing.assert_close(seen_from.encode(x).dense(), x - x.mean(0))


def test_a_blocks_neurons_are_the_block_and_those_that_write_most_are_kept():
    block = ExactMLP(tiny_llama().mlp_weights(0))
    x = draw(40, 32)
    coder = neurons(block)
    torch.testing.assert_close(coder.decode(coder.encode(x)), block(x), atol=1e-5, rtol=1e-4)
    few = neurons(block, k=3).encode(x)
    written = block.neurons(x).abs() * block.W_out.norm(dim=1)
    assert torch.equal(
        few.support.latent.view(40, 3).sort(1).values, written.topk(3).indices.sort(1).values
    )
    assert (few.value < 0).any()


def test_keeping_none_or_too_many_is_refused():
    for k in (0, 13):
        with pytest.raises(UserError, match=f"k={k} coefficients"):
            coordinates(12, k=k)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    true_import = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for learn in (lambda: ica(draw(20, 3)), lambda: nmf(draw(20, 3), 2)):
        with pytest.raises(UserError, match=r"pip install 'unweave\[baselines\]'"):
            learn()
