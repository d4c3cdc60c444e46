"""Ragged products against the same sums written out densely in float64."""

import pytest
import torch

from unweave.dictionaries.code import SparseCode, Support
from unweave.dictionaries.kernels.ragged import inner, over_latents, over_rows, pick, write

ROWS, LATENTS, D = 7, 11, 5
RAGGED = ((3, 1), (), (0, 1, 2, 10), (), (), (9,), ())
"""Latents of each row: out of order, whole rows silent, the last row among them."""
DOUBLED = ((3, 3, 1), (), (0,), (), (2, 2), (9,), ())
"""A latent twice in one row."""
NOBODY = ((),) * ROWS
SHAPES = pytest.mark.parametrize("latents", [RAGGED, DOUBLED, NOBODY])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def support_of(latents) -> Support:
    counts = torch.tensor([len(row) for row in latents])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    flat = torch.tensor([latent for row in latents for latent in row], dtype=torch.long)
    return Support(offsets, flat, LATENTS)


def entries(latents) -> list[tuple[int, int]]:
    return [(row, latent) for row, found in enumerate(latents) for latent in found]


@SHAPES
def test_a_product_at_the_support_is_the_dense_one(latents):
    left, right = drawn(ROWS, D), drawn(LATENTS, D, seed=1)
    wanted = [(left[r] @ right[i]).item() for r, i in entries(latents)]
    torch.testing.assert_close(
        inner(left, right, support_of(latents)), torch.tensor(wanted, dtype=torch.float64)
    )


@SHAPES
def test_sums_over_rows_and_over_latents_are_matrix_products(latents):
    support = support_of(latents)
    weight = drawn(len(entries(latents)), seed=2)
    matrix = SparseCode(support, weight).dense()
    rows, decoder = drawn(ROWS, D), drawn(LATENTS, D, seed=1)
    torch.testing.assert_close(over_rows(weight, rows, support), matrix.T @ rows)
    torch.testing.assert_close(over_latents(weight, decoder, support), matrix @ decoder)


@SHAPES
def test_the_gradients_of_writing_are_slopes(latents):
    support = support_of(latents)
    value = drawn(len(entries(latents)), seed=2).requires_grad_()
    decoder = drawn(LATENTS, D, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, W: write(v, W, support), (value, decoder))


@SHAPES
def test_the_gradients_of_picking_are_those_of_the_dense_product(latents):
    support = support_of(latents)
    x, W, b = drawn(ROWS, D), drawn(LATENTS, D, seed=1), drawn(LATENTS, seed=3)
    weight = drawn(len(entries(latents)), seed=4)
    ends = []
    for ragged in (True, False):
        leaves = [t.clone().requires_grad_() for t in (x, W, b)]
        dense = leaves[0] @ leaves[1].T + leaves[2]
        at = dense[support.row, support.latent]
        picked = pick(at.detach(), *leaves, support) if ragged else at
        ends.append((picked.detach(), torch.autograd.grad((weight * picked).sum(), leaves)))
    torch.testing.assert_close(ends[0], ends[1])


def test_only_wanted_gradients_are_asked_for():
    support = support_of(RAGGED)
    W = drawn(LATENTS, D).requires_grad_()
    written = write(drawn(len(entries(RAGGED)), seed=2), W, support)
    (gradient,) = torch.autograd.grad(written.sum(), [W])
    silent = [i for i in range(LATENTS) if i not in {i for _, i in entries(RAGGED)}]
    assert gradient[silent].eq(0).all()
    assert gradient.ne(0).any()


def test_a_gradient_that_is_expanded_is_read_right():
    support = support_of(RAGGED)
    value = drawn(len(entries(RAGGED)), seed=2).requires_grad_()
    decoder = drawn(LATENTS, D, seed=1)
    (found,) = torch.autograd.grad(write(value, decoder, support).sum(), [value])
    torch.testing.assert_close(found, decoder.sum(1)[support.latent])


def test_rows_and_codes_can_be_cut_and_joined():
    code = SparseCode(support_of(RAGGED), drawn(len(entries(RAGGED))))
    pieces = [code.between(0, 2), code.between(2, 2), code.between(2, ROWS)]
    again = SparseCode.cat(pieces)
    assert torch.equal(again.dense(), code.dense())
    assert torch.equal(again.support.offsets, code.support.offsets)
    assert torch.equal(SparseCode.from_dense(code.dense()).dense(), code.dense())
    assert code.l0() == len(entries(RAGGED)) / ROWS
