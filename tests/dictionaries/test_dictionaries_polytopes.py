"""Polytopes: equal patterns have equal codes; grouped by clusters, and composed of factors."""

import pytest
import torch
from tiny_subject import tiny_llama

from unweave.dictionaries.baselines.polytopes import (
    activation_pattern,
    polytope_clusters,
    polytope_factors,
)
from unweave.subject import MLPWeights

KINDS = {
    "clusters": lambda x, p: polytope_clusters(x, p, 20, seed=0),
    "nmf": lambda x, p: polytope_factors(x, p, 6, k=3),
    "pca": lambda x, p: polytope_factors(x, p, 6, k=3, by="pca"),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def few_neurons(m=7, d=5):
    """Seven planes cut a space of five dimensions into few enough pieces to meet most twice."""
    W, b = draw(m, d, seed=3), 0.5 * draw(m, seed=4)
    weights = MLPWeights(
        W_in=W, b_in=b, W_gate=None, W_out=draw(m, d, seed=5), b_out=None, activation="relu"
    )
    return W, b, activation_pattern(weights)


def fvu(coder, x):
    error = x - coder.decode(coder.encode(x))
    return (error.square().sum() / (x - x.mean(0)).square().sum()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_patterns_have_equal_codes(kind):
    W, b, pattern = few_neurons()
    x, new = draw(800, 5), draw(600, 5, seed=1)
    code = KINDS[kind](x, pattern).encode(new).dense()
    bits = (new @ W.T + b > 0).long() @ (2 ** torch.arange(7))
    assert 20 < len(bits.unique()) < 128
    for polytope in bits.unique():
        mine = code[bits == polytope]
        torch.testing.assert_close(mine, mine[:1].expand_as(mine), rtol=0, atol=1e-5)
    assert len(code.round(decimals=3).unique(dim=0)) > 10, "different patterns, different codes"


def test_with_a_cluster_for_every_pattern_each_writes_the_mean_of_its_polytope():
    W, b, pattern = few_neurons(m=3)
    x = draw(900, 5)
    bits = (x @ W.T + b > 0).long() @ (2 ** torch.arange(3))
    count = len(bits.unique())
    coder = polytope_clusters(x, pattern, count, seed=0, steps=100)
    code = coder.encode(x)
    if len(code.support.latent.unique()) < count:
        pytest.fail("two patterns share a cluster although there is one for each")
    written = coder.decode(code)
    for polytope in bits.unique():
        mine = bits == polytope
        torch.testing.assert_close(
            written[mine], x[mine].mean(0).expand(int(mine.sum()), -1), rtol=0, atol=1e-4
        )


def composed(rows=2000, seed=1):
    """Four independent switches; each turns its own group of six neurons on or off."""
    g = torch.Generator().manual_seed(seed)
    on = (torch.rand(rows, 4, generator=g) < 0.5).float()
    directions = torch.linalg.qr(draw(12, 4, seed=2)).Q.T
    x = (on * 2 - 1) @ directions + 0.05 * torch.randn(rows, 12, generator=g)
    W = directions.repeat_interleave(6, dim=0) + 0.03 * draw(24, 12, seed=3)
    weights = MLPWeights(W_in=W, b_in=None, W_gate=None, W_out=W, b_out=None, activation="relu")
    return x, directions, activation_pattern(weights)


@pytest.mark.parametrize("by", ["nmf", "pca"])
def test_composition_says_with_four_factors_what_takes_sixteen_clusters(by):
    x, directions, pattern = composed()
    new = composed(seed=7)[0]
    factors = polytope_factors(x, pattern, 4, by=by)
    assert fvu(factors, new) < 0.1
    assert fvu(polytope_clusters(x, pattern, 4, seed=0), new) > 0.3
    assert fvu(polytope_clusters(x, pattern, 32, seed=0), new) < 0.1
    if by == "nmf":
        assert (factors.parts >= 0).all()
        unit = torch.nn.functional.normalize(factors.directions())
        assert (unit @ directions.T).max(0).values.min() > 0.95


def test_patterns_without_relation_to_the_vectors_say_nothing():
    x, _, pattern = composed()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))

    def stranger(rows):
        return pattern(rows)[order[: len(rows)]]

    for coder in (polytope_factors(x, stranger, 4), polytope_clusters(x, stranger, 32, seed=0)):
        assert fvu(coder, composed(seed=7)[0]) > 0.9


def test_the_gate_decides_where_there_is_one():
    weights = tiny_llama().mlp_weights(0)
    x = draw(50, 32)
    assert weights.W_gate is not None
    assert torch.equal(activation_pattern(weights)(x), (x @ weights.W_gate.T > 0).float())
    shifted = MLPWeights(**{**vars(weights), "b_gate": torch.full((len(weights.W_gate),), 100.0)})
    assert activation_pattern(shifted)(x).all()
