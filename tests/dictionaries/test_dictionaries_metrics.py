import math
from itertools import pairwise

import pytest
import torch

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.metrics import (
    BINS_PER_DECADE,
    DECADES,
    density_histogram,
    fidelity_of,
    fidelity_sums,
)


def some(rows=64, width=5, latents=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.randn(rows, width, generator=g) + 3.0
    code = torch.rand(rows, latents, generator=g)
    return y, SparseCode.from_dense(code * (code > 0.7))


def test_perfect_is_perfect_and_the_mean_explains_nothing() -> None:
    y, code = some()
    perfect = fidelity_of(fidelity_sums(y, y.clone(), code))
    assert (perfect.fvu, perfect.mse) == (0, 0)
    for value in (perfect.cosine, perfect.l2_ratio, perfect.gamma):
        assert value == pytest.approx(1)
    mean = fidelity_of(fidelity_sums(y, y.mean(0).expand_as(y), code))
    assert mean.fvu == pytest.approx(1)
    assert mean.mse == pytest.approx((y - y.mean(0)).square().mean().item(), rel=1e-5)


def test_shrinking_shows_in_gamma_and_the_length_but_not_in_the_cosine() -> None:
    y, code = some()
    found = fidelity_of(fidelity_sums(y, 0.7 * y, code))
    assert found.gamma == pytest.approx(0.7, rel=1e-5)
    assert found.l2_ratio == pytest.approx(0.7, rel=1e-5)
    assert found.cosine == pytest.approx(1)
    assert found.fvu > 0.1


def test_gamma_is_the_scale_that_brings_the_output_back_best() -> None:
    y, code = some()
    noisy = 0.8 * y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    gamma = fidelity_of(fidelity_sums(y, noisy, code)).gamma
    tried = torch.linspace(0.5, 2, 3001)
    error = torch.stack([(noisy / g - y).square().sum() for g in tried])
    assert gamma == pytest.approx(tried[error.argmin()].item(), abs=1e-3)


def test_pieces_add_up_to_the_whole() -> None:
    y, code = some()
    y_hat = y * 0.9 + 0.1
    whole = fidelity_sums(y, y_hat, code)
    cuts = (0, 10, 40, 64)
    first, second, third = (
        fidelity_sums(y[a:b], y_hat[a:b], code.between(a, b)) for a, b in pairwise(cuts)
    )
    added = fidelity_of(first + second + third)
    for name, value in fidelity_of(whole)._asdict().items():
        assert getattr(added, name) == pytest.approx(value), name


def test_entries_of_zero_are_not_active() -> None:
    y, _ = some(rows=2)
    code = SparseCode.from_topk(
        torch.tensor([[0, 1], [0, 2]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]), 4
    )
    found = fidelity_of(fidelity_sums(y, y, code))
    assert found.l0 == 1
    assert found.alive == 0.25


def test_the_histogram_counts_decades_and_leaves_the_dead_out() -> None:
    fired = torch.tensor([0, 1, 10, 1000, 1_000_000])
    counts = density_histogram(fired, 1_000_000)
    assert len(counts) == DECADES * BINS_PER_DECADE
    assert sum(counts) == 4
    assert [at for at, count in enumerate(counts) if count] == [0, 4, 12, 23]


def test_nothing_seen_is_nan_and_not_a_number_to_boast_of() -> None:
    y, code = some()
    found = fidelity_of(fidelity_sums(y, torch.zeros_like(y), code))
    assert math.isnan(found.gamma)
    assert found.l2_ratio == 0


def test_codes_join_and_part_again() -> None:
    _, code = some()
    joined = SparseCode.cat([code.between(0, 20), code.between(20, 20), code.between(20, 64)])
    assert torch.equal(joined.dense(), code.dense())
    assert torch.equal(code.between(5, 9).dense(), code.dense()[5:9])


def test_targets_that_are_zero_have_no_length_to_compare_with() -> None:
    """A planted row may hold no feature; what is written there shows in the error alone."""
    y, code = some()
    y[:5] = 0
    found = fidelity_of(fidelity_sums(y, 0.7 * y + 1e-3 * (y == 0), code))
    assert found.l2_ratio == pytest.approx(0.7, rel=1e-5)
    assert found.cosine == pytest.approx(1)
    assert fidelity_of(fidelity_sums(y, 0.7 * y + 1.0 * (y == 0), code)).mse > found.mse
