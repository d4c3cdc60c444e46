"""What every coder and baseline owes to whatever measures it, whichever way it was made."""

from functools import partial

import pytest
import torch
from tiny_subject import tiny_llama

from unweave.dictionaries.baselines.ica import ica
from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.neurons import (
    ExactAttentionOutput,
    ExactMLP,
    coordinates,
    neurons,
)
from unweave.dictionaries.baselines.nmf import nmf
from unweave.dictionaries.baselines.pca import pca, svd, weight_svd
from unweave.dictionaries.baselines.polytopes import (
    activation_pattern,
    polytope_clusters,
    polytope_factors,
)
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.coders.fista import fista, ista
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.itda import ITDASettings, itda
from unweave.dictionaries.coders.ksvd import AlternatingSettings, ksvd, mod
from unweave.dictionaries.coders.pursuit import (
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
)
from unweave.validate.check_dictionary import hold_dictionary

D, K = 32, 4
TRAIN = torch.randn(400, D, generator=torch.Generator().manual_seed(1)) @ torch.randn(
    D, D, generator=torch.Generator().manual_seed(2)
)
X = TRAIN[:90] * 1.1 + 0.3
ATOMS = torch.nn.functional.normalize(
    torch.randn(80, D, generator=torch.Generator().manual_seed(3))
)


def fixed(encoder, **settings):
    return lambda: FixedDictionary(ATOMS, partial(encoder, **settings), b_dec=TRAIN.mean(0))


def pattern():
    return activation_pattern(tiny_llama().mlp_weights(0))


ALTERNATING = AlternatingSettings(n_latents=40, k=K, sweeps=2)
CODERS = {
    "matching pursuit": (fixed(matching_pursuit, k=K), K),
    "gradient pursuit": (fixed(gradient_pursuit, k=K), K),
    "OMP": (fixed(orthogonal_matching_pursuit, k=K), K),
    "FISTA": (fixed(fista, penalty=4.0), 80),
    "ISTA, signed": (fixed(ista, penalty=4.0, signed=True, steps=50), 80),
    "K-SVD": (lambda: ksvd(TRAIN, ALTERNATING), K),
    "MOD": (lambda: mod(TRAIN, ALTERNATING), K),
    "ITDA": (lambda: itda(TRAIN, ITDASettings(k=K, tau=0.3)), K),
    "coordinates": (lambda: coordinates(D, k=K), K),
    "MLP neurons": (lambda: neurons(ExactMLP(tiny_llama().mlp_weights(0)), k=K), K),
    "entries of z": (
        lambda: neurons(ExactAttentionOutput(tiny_llama().attention_weights(0)), k=K),
        K,
    ),
    "random": (lambda: random_directions(TRAIN, 64, k=K, seed=0), K),
    "PCA": (lambda: pca(TRAIN, k=K), K),
    "PCA, the same few": (lambda: pca(TRAIN, K), K),
    "SVD": (lambda: svd(TRAIN, k=K), K),
    "SVD of weights": (lambda: weight_svd(tiny_llama().mlp_weights(0).W_in, k=K), K),
    "ICA": (lambda: ica(TRAIN, 8, k=K, tolerance=0.1), K),
    "NMF": (lambda: nmf(TRAIN, 10, k=K), K),
    "k-means": (lambda: kmeans(TRAIN, 12, seed=0), 1),
    "polytopes, clustered": (lambda: polytope_clusters(TRAIN, pattern(), 12, seed=0), 1),
    "polytopes, NMF": (lambda: polytope_factors(TRAIN, pattern(), 10, k=K), K),
    "polytopes, PCA": (lambda: polytope_factors(TRAIN, pattern(), 10, k=K, by="pca"), K),
}
MAPS_ELSEWHERE = {"MLP neurons", "entries of z"}
"""These write what a block makes of x and are not asked to give x back."""


@pytest.fixture(scope="module", params=CODERS)
def case(request):
    make, most = CODERS[request.param]
    return request.param, make(), most


def test_it_is_a_coder_with_as_many_directions_as_latents(case):
    _, coder, _ = case
    assert isinstance(coder, Coder)
    directions = coder.directions()
    assert directions.shape == (coder.n_latents, D)
    assert torch.isfinite(directions).all()


def test_codes_have_the_promised_sparsity_and_stay_within_the_dictionary(case):
    _, coder, most = case
    code = coder.encode(X)
    support = code.support
    assert support.rows == len(X)
    assert code.n_latents == coder.n_latents
    assert 0 < code.l0() <= most
    assert support.offsets.diff().max() <= most
    assert ((support.latent >= 0) & (support.latent < coder.n_latents)).all()
    pairs = support.row * coder.n_latents + support.latent
    assert len(pairs.unique()) == len(pairs), "no latent twice in a row"


def test_encoding_is_deterministic_and_row_by_row(case):
    _, coder, _ = case
    whole, again = coder.encode(X), coder.encode(X)
    assert torch.equal(whole.support.latent, again.support.latent)
    assert torch.equal(whole.value, again.value)
    part = coder.encode(X[40:50]).dense()
    torch.testing.assert_close(part, whole.dense()[40:50], rtol=1e-3, atol=1e-3)


def test_decoding_is_the_offset_plus_what_the_latents_write(case):
    _, coder, _ = case
    code = coder.encode(X)
    nothing = coder.decode(SparseCode.from_dense(torch.zeros(1, coder.n_latents)))
    want = code.dense() @ coder.directions() + nothing
    torch.testing.assert_close(coder.decode(code), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CODERS)
def test_it_passes_the_battery_that_every_dictionary_passes(name):
    hold_dictionary(CODERS[name][0], X[:48])


def test_it_says_more_than_the_mean_and_no_gradient_is_kept(case):
    name, coder, _ = case
    y_hat = coder.decode(coder.encode(X))
    assert y_hat.shape == X.shape
    assert not coder.encode(X).value.requires_grad
    fvu = ((X - y_hat).square().sum() / (X - X.mean(0)).square().sum()).item()
    assert fvu == fvu, "finite"
    if name not in MAPS_ELSEWHERE:
        assert fvu < 1
