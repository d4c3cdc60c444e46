"""FISTA against its optimality conditions and its published rates; what a fixed code is worth."""

import itertools
from functools import partial

import pytest
import torch

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.coders.fista import fista, ista, lipschitz, objective
from unweave.dictionaries.coders.fixed import FixedDictionary, amortisation_gap
from unweave.dictionaries.coders.pursuit import gradient_pursuit, orthogonal_matching_pursuit
from unweave.errors import UserError

SIGNED = pytest.mark.parametrize("signed", [False, True])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@SIGNED
@pytest.mark.parametrize("latents", [30, 200])
def test_the_optimum_satisfies_the_kkt_conditions(signed, latents):
    W, x, penalty = draw(latents, 40), draw(530, 40, seed=1), 4.0
    c = fista(x, W, penalty, signed=signed, steps=20_000, tolerance=1e-8).dense()
    slope = (x - c @ W) @ W.T
    active = c != 0
    assert 0.02 < active.double().mean() < 0.7
    torch.testing.assert_close(slope[active], penalty * c[active].sign(), rtol=0, atol=1e-6)
    outside = slope[~active].abs() if signed else slope[~active]
    assert outside.max() < penalty + 1e-6
    assert (c < 0).any() == signed
    early = fista(x, W, penalty, signed=signed, steps=3).dense()
    early_slope = ((x - early @ W) @ W.T)[early != 0]
    assert (early_slope - penalty * early[early != 0].sign()).abs().max() > 1, "the control"


def test_with_orthogonal_atoms_the_optimum_is_a_soft_threshold():
    W = torch.linalg.qr(draw(24, 24)).Q
    x = draw(50, 24, seed=1)
    want = torch.nn.functional.softshrink(x @ W.T, 0.7)
    torch.testing.assert_close(fista(x, W, 0.7, signed=True).dense(), want)
    torch.testing.assert_close(fista(x, W, 0.7).dense(), want.clamp_min(0))


def gaps(solver, x, W, penalty, counts, best):
    """Distance of F from the minimum after each number of steps, summed over rows."""
    solve = partial(solver, x, W, penalty, signed=True, tolerance=0.0)
    values = [objective(x, W, solve(steps=n), penalty).sum() for n in counts]
    return torch.stack(values) - best


def test_momentum_brings_the_error_from_one_over_k_to_one_over_k_squared():
    # A spectrum over 2.5 decades: neither method is rescued early by strong convexity.
    W = draw(80, 40, seed=2) * torch.logspace(0, -2.5, 40, dtype=torch.float64)
    x, penalty = draw(20, 80, seed=3) @ W, 1e-2
    long = fista(x, W, penalty, signed=True, steps=20_000, tolerance=0.0)
    best = objective(x, W, long, penalty).sum()
    reach = lipschitz(W) * long.value.square().sum()
    counts = torch.tensor([10, 30, 100, 300, 1000])
    slow = gaps(ista, x, W, penalty, counts.tolist(), best)
    fast = gaps(fista, x, W, penalty, counts.tolist(), best)
    assert (slow <= reach / (2 * counts)).all()
    fast_bound = 2 * reach / (counts + 1) ** 2
    assert (fast <= fast_bound).all()
    assert (slow[3:] > 2 * fast_bound[3:]).all(), "ISTA does not keep FISTA's bound"
    order = [(gap[0] / gap[-1]).log10() / 2 for gap in (slow, fast)]
    assert order[0] < 1.2
    assert order[1] > 1.7


def test_ista_never_goes_up():
    W, x = draw(60, 20), draw(20, 20, seed=1)
    values = [objective(x, W, ista(x, W, 1.0, steps=n), 1.0) for n in range(1, 30)]
    assert all((b <= a + 1e-12).all() for a, b in itertools.pairwise(values))


def test_the_objective_is_what_it_says():
    W, x, c = draw(9, 5), draw(7, 5, seed=1), draw(7, 9, seed=2)
    want = 0.5 * (x - c @ W).square().sum(1) + 0.3 * c.abs().sum(1)
    torch.testing.assert_close(objective(x, W, SparseCode.from_dense(c), 0.3), want)


@SIGNED
def test_a_heavy_penalty_silences_everything(signed):
    W, x = draw(60, 20), draw(20, 20, seed=1)
    heavy = (x @ W.T).abs().max().item() + 1
    assert fista(x, W, heavy, signed=signed).l0() == 0
    assert fista(x[:0], W, 1.0).support.rows == 0


def test_a_negative_penalty_is_refused():
    with pytest.raises(UserError, match="penalty"):
        fista(draw(3, 4), draw(5, 4), -1.0)


def test_a_fixed_dictionary_works_in_raw_units():
    W, b = draw(80, 16), draw(16, seed=4)
    truth = torch.zeros(100, 80, dtype=torch.float64)
    truth[torch.arange(100), torch.arange(100) % 80] = 2.0
    omp = partial(orthogonal_matching_pursuit, k=1)
    coder = FixedDictionary(W, omp, b_dec=b, scale=5.0)
    x = (truth @ W + b) / 5
    torch.testing.assert_close(coder.encode(x).dense(), truth)
    torch.testing.assert_close(coder.decode(coder.encode(x)), x)
    write_one = coder.decode(SparseCode.from_dense(torch.eye(80, dtype=torch.float64)))
    nothing = coder.decode(SparseCode.from_dense(torch.zeros(1, 80, dtype=torch.float64)))
    torch.testing.assert_close(coder.directions(), write_one - nothing)


class Amortised(FixedDictionary):
    """An encoder that knows the true support of a share of the rows and shrinks every value."""

    def __init__(self, W_dec, b_dec, truth, shrink):
        super().__init__(W_dec, lambda x, W: SparseCode.from_dense(shrink * truth), b_dec=b_dec)


def test_the_amortisation_gap_is_what_the_encoder_loses_and_zero_without_loss():
    W, b = draw(60, 40), draw(40, seed=4)
    W = W / W.norm(dim=1, keepdim=True)
    g = torch.Generator().manual_seed(5)
    active = torch.rand(400, 60, generator=g) < 0.04
    truth = active * (0.5 + torch.rand(400, 60, generator=g, dtype=torch.float64))
    x = truth @ W + b
    perfect = amortisation_gap(Amortised(W, b, truth, 1.0), x)
    assert perfect.fvu < 1e-20
    shrunk = amortisation_gap(Amortised(W, b, truth, 0.8), x)
    share = (truth @ W).square().sum() / (x - x.mean(0)).square().sum()
    assert shrunk.fvu == pytest.approx(0.04 * share.item())
    assert shrunk.fvu_refit < 1e-20, "all of this loss is in the values"
    assert shrunk.gap == pytest.approx(shrunk.fvu - shrunk.fvu_pursuit)
    assert shrunk.gap > 0.02
    assert shrunk.l0 == pytest.approx((truth > 0).sum(1).double().mean().item())
    wrong = amortisation_gap(Amortised(W, b, truth.roll(1, 1), 1.0), x)
    assert wrong.fvu > wrong.fvu_refit > 0.5 > wrong.fvu_pursuit, "and here in the choice"


def test_omp_itself_has_no_gap_and_a_poorer_pursuit_has_one():
    W, x = draw(120, 40), draw(300, 40, seed=6)
    own, poor = (
        amortisation_gap(FixedDictionary(W, partial(pursue, k=9, signed=True)), x, signed=True)
        for pursue in (orthogonal_matching_pursuit, gradient_pursuit)
    )
    assert own.gap == pytest.approx(0, abs=1e-9)
    assert poor.gap > 1e-3
