"""Pursuits where theory says what must come out, and where it says what must not."""

import itertools

import pytest
import torch

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.coders import pursuit
from unweave.dictionaries.coders.pursuit import (
    gradient_pursuit,
    matching_pursuit,
    orthogonal_matching_pursuit,
)
from unweave.dictionaries.coders.refit import debias, least_squares, padded
from unweave.errors import UserError

PURSUITS = {
    "mp": matching_pursuit,
    "gp": gradient_pursuit,
    "omp": orthogonal_matching_pursuit,
}
SIGNED = pytest.mark.parametrize("signed", [False, True])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def incoherent(latents=96, d=64, sweeps=400):
    """Atoms pushed apart until Tropp's condition holds for two of them: coherence under 1/3."""
    W = draw(latents, d, seed=3)
    for _ in range(sweeps):
        W = W / W.norm(dim=1, keepdim=True)
        gram = W @ W.T
        gram.fill_diagonal_(0)
        W = W - 0.05 * gram.sign() * (gram.abs() > 0.2) @ W
    return W / W.norm(dim=1, keepdim=True)


def planted(W, k, rows=300, *, signed, seed=1):
    g = torch.Generator().manual_seed(seed)
    latent = torch.rand(rows, len(W), generator=g).topk(k, dim=1).indices
    value = 0.5 + torch.rand(rows, k, generator=g, dtype=W.dtype)
    if signed:
        value = value * (torch.randint(0, 2, (rows, k), generator=g) * 2 - 1)
    return SparseCode.from_topk(latent, value, len(W)).dense()


def left(x, W, code):
    return ((x - code.dense() @ W).square().sum() / x.square().sum()).item()


@SIGNED
def test_omp_finds_a_planted_code_exactly_where_theory_says_it_must_and_mp_does_not(signed):
    W = incoherent()
    coherence = (W @ W.T - torch.eye(len(W), dtype=W.dtype)).abs().max()
    k = 2
    assert k < (1 + 1 / coherence) / 2, "the premise of Tropp's theorem"
    truth = planted(W, k, signed=signed)
    x = truth @ W
    found = orthogonal_matching_pursuit(x, W, k, signed=signed).dense()
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    greedy = matching_pursuit(x, W, k, signed=signed).dense()
    assert torch.equal(greedy != 0, truth != 0), "MP selects as well here"
    assert (greedy - truth).abs().max() > 0.05, "but its values are those of a first guess"
    assert left(x, W, debias(SparseCode.from_dense(greedy), x, W, signed=signed)) < 1e-20


def test_coherent_atoms_break_even_omp():
    W = draw(96, 64, seed=3)
    W = W + 6 * draw(1, 64, seed=4)
    truth = planted(W, 8, signed=False)
    found = orthogonal_matching_pursuit(truth @ W, W, 8).dense()
    assert ((found != 0) == (truth != 0)).all(1).double().mean() < 0.4


@SIGNED
@pytest.mark.parametrize("latents", [40, 300])
def test_dearer_pursuits_leave_less(signed, latents):
    W, x = draw(latents, 48, seed=5) * draw(latents, 1, seed=6).exp(), draw(700, 48, seed=7)
    for k in (3, 9):
        codes = {name: pursue(x, W, k, signed=signed) for name, pursue in PURSUITS.items()}
        mp, gp, omp = (left(x, W, code) for code in codes.values())
        assert omp < gp < mp
        for code in codes.values():
            assert code.support.offsets.diff().max() <= k
            assert (code.value < 0).any() == signed
            assert len(
                set(zip(code.support.row.tolist(), code.support.latent.tolist(), strict=True))
            ) == len(code.value)


def test_more_steps_leave_less():
    W, x = draw(40, 48, seed=5), draw(200, 48, seed=7)
    for pursue in PURSUITS.values():
        rest = [left(x, W, pursue(x, W, k, signed=True)) for k in (1, 2, 4, 8, 16)]
        assert rest == sorted(rest, reverse=True)


@SIGNED
@pytest.mark.parametrize("name", PURSUITS)
def test_products_of_atoms_change_the_price_and_not_the_code(name, signed, monkeypatch):
    W, x = draw(60, 32, seed=8), draw(1100, 32, seed=9)
    with_products = PURSUITS[name](x, W, 7, signed=signed).dense()
    monkeypatch.setattr(pursuit, "GRAM_LATENTS", 0)
    torch.testing.assert_close(PURSUITS[name](x, W, 7, signed=signed).dense(), with_products)


def one_row(x, W, k, *, signed):
    """OMP as the textbook has it, one row at a time, by an exhaustive non-negative solver."""
    U = W / W.norm(dim=1, keepdim=True)
    chosen, c = [], x.new_zeros(0)
    for _ in range(k):
        h = U @ (x - c @ U[chosen])
        score = h.abs() if signed else h.clone()
        score[chosen] = 0
        if score.max() < 1e-12:
            break
        chosen.append(int(score.argmax()))
        c = exact_least_squares(x, U[chosen], signed=signed)
    out = x.new_zeros(len(W))
    out[chosen] = c / W[chosen].norm(dim=1)
    return out


def exact_least_squares(x, atoms, *, signed):
    if signed:
        return torch.linalg.lstsq(atoms.T, x[:, None]).solution[:, 0]
    best, least = x.new_zeros(len(atoms)), x.square().sum()
    for size in range(1, len(atoms) + 1):
        for some in map(list, itertools.combinations(range(len(atoms)), size)):
            c = torch.linalg.lstsq(atoms[some].T, x[:, None]).solution[:, 0]
            error = (x - c @ atoms[some]).square().sum()
            if (c >= 0).all() and error < least - 1e-13:
                best, least = x.new_zeros(len(atoms)), error
                best[some] = c
    return best


@SIGNED
def test_omp_is_the_textbook_row_by_row(signed):
    W, x = draw(20, 8, seed=10) + 0.5, draw(30, 8, seed=11)
    found = orthogonal_matching_pursuit(x, W, 4, signed=signed).dense()
    wanted = torch.stack([one_row(row, W, 4, signed=signed) for row in x])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


def test_gradient_pursuit_takes_the_steepest_step_of_exact_length():
    W, x = draw(20, 12, seed=12), draw(1, 12, seed=13)
    U = W / W.norm(dim=1, keepdim=True)
    before = gradient_pursuit(x, W, 2, signed=True).dense() * W.norm(dim=1)
    after = gradient_pursuit(x, W, 3, signed=True).dense() * W.norm(dim=1)
    rest = x - before @ U
    support = before[0] != 0
    support[(rest @ U.T).abs().argmax()] = True
    g = (rest @ U.T) * support
    a = g.square().sum() / (g @ U).square().sum()
    torch.testing.assert_close(after, before + a * g)


def test_each_row_may_have_its_own_budget():
    W, x = draw(40, 24, seed=14), draw(50, 24, seed=15)
    budget = torch.arange(50) % 5
    code = orthogonal_matching_pursuit(x, W, budget, signed=True)
    assert torch.equal(code.support.offsets.diff(), budget)
    alike = orthogonal_matching_pursuit(x, W, 3, signed=True).dense()
    torch.testing.assert_close(code.dense()[3::5], alike[3::5])


def test_a_row_that_is_explained_takes_no_more_atoms():
    W = draw(40, 24, seed=14).float()
    x = torch.cat([torch.zeros(1, 24), 3 * W[7:8], W[2:3] - W[5:6]])
    for k in (4, 30):
        code = orthogonal_matching_pursuit(x, W, k, signed=True)
        assert code.support.offsets.diff().tolist() == [0, 1, 2]
        assert code.support.latent[0] == 7
    for pursue in PURSUITS.values():
        code = pursue(x[:2], W, 30, signed=True)
        assert code.support.offsets.diff().tolist() == [0, 1], "not the rounding errors' atoms"
    assert matching_pursuit(x[:0], W, 4).support.rows == 0


def test_more_steps_than_dimensions_do_no_harm():
    W, x = draw(60, 8, seed=16).float(), draw(40, 8, seed=17).float()
    for signed in (False, True):
        assert left(x, W, orthogonal_matching_pursuit(x, W, 30, signed=signed)) < 1e-8


def test_twin_atoms_and_atoms_of_zero_are_survived():
    W = draw(10, 16, seed=18).float()
    W = torch.cat([W, W, torch.zeros(2, 16)])
    for pursue in PURSUITS.values():
        code = pursue(draw(50, 16, seed=19).float(), W, 8, signed=True)
        assert torch.isfinite(code.value).all()
        assert (code.support.latent < 20).all()


def test_no_steps_are_refused():
    with pytest.raises(UserError, match="at least one step"):
        matching_pursuit(draw(3, 4), draw(5, 4), 0)


def test_non_negative_least_squares_meets_its_optimality_conditions():
    atoms, x = draw(200, 9, 12, seed=20) + 0.4, draw(200, 12, 1, seed=21)
    gram, target = atoms @ atoms.mT, (atoms @ x)[..., 0]
    used = torch.rand(200, 9, generator=torch.Generator().manual_seed(22)) < 0.8
    for start in (torch.zeros_like(target), draw(200, 9, seed=23).abs()):
        value = least_squares(gram, target, used, start, signed=False)
        slope = (target - (gram @ value[..., None])[..., 0]) * used
        assert (value >= 0).all()
        assert (value[~used] == 0).all()
        assert (slope[value > 0].abs() < 1e-8).all()
        assert (slope < 1e-8).all()
        assert 0.2 < (value[used] == 0).double().mean() < 0.8


def test_debias_removes_shrinkage_and_keeps_the_support():
    W = draw(30, 20, seed=24)
    truth = planted(W, 4, signed=True)
    shrunk = SparseCode.from_dense(0.7 * truth)
    x = truth @ W
    back = debias(shrunk, x, W, signed=True)
    torch.testing.assert_close(back.dense(), truth, rtol=0, atol=1e-10)
    assert left(x, W, shrunk) == pytest.approx(0.09)


def test_padded_is_the_code_with_room():
    truth = planted(draw(30, 20, seed=24), 4, signed=True)
    truth[5] = 0
    truth[6, :20] = 1
    latent, value, used = padded(SparseCode.from_dense(truth))
    assert latent.shape[1] == int((truth != 0).sum(1).max())
    back = torch.zeros_like(truth).index_put(
        (torch.arange(len(truth))[:, None].expand_as(latent)[used], latent[used]), value[used]
    )
    assert torch.equal(back, truth)
