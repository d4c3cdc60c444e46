"""Modular addition: the hand-set network is what it says, and Fourier planes are found or not."""

import math

import pytest
import torch

from unweave.dictionaries.baselines.linear import Coefficients, read_by
from unweave.errors import UserError
from unweave.subject import wrap_module
from unweave.validate.truth.fourier import (
    embedding_spectrum,
    fourier_basis,
    margin,
    spectrum,
    sum_planes,
    table_planes,
    without_frequencies,
)
from unweave.validate.truth.planes import measure_planes
from unweave.validate.worlds.modular import (
    ModularSettings,
    accuracy,
    all_pairs,
    exact_modular,
    held_out,
    targets,
    train_modular,
)

P, KEYS = 23, (2, 5, 9)
TASK = ModularSettings(p=P, width=24, neurons=64, train_share=0.7, steps=800)


@pytest.fixture(scope="module")
def exact():
    return exact_modular(P, KEYS)


def circles(frequencies, p=P):
    """(9 / 2) sum_k cos(w_k (a + b - c)), pairs in rows."""
    apart = all_pairs(p).sum(1)[:, None] - torch.arange(p)
    return 4.5 * sum((2 * math.pi * k * apart / p).cos() for k in frequencies)


def reader(rows) -> Coefficients:
    return Coefficients(read_by(rows, torch.zeros(rows.shape[1])), rows)


def test_the_hand_set_network_computes_its_closed_form_and_every_sum(exact) -> None:
    logits = exact(all_pairs(P))
    assert torch.allclose(logits, circles(KEYS), atol=1e-4)
    assert accuracy(exact, targets(TASK, seed=0)) == 1
    assert torch.allclose(exact_modular(P, [4])(all_pairs(P)), circles([4]), atol=1e-4)
    with pytest.raises(UserError, match="frequencies from 1 to 11"):
        exact_modular(P, [12])
    with pytest.raises(UserError, match="odd modulus"):
        exact_modular(22, [1])


def test_its_spectrum_is_what_was_set_and_a_random_table_has_all(exact) -> None:
    found = embedding_spectrum(exact)
    assert sorted(found.key) == list(KEYS)
    assert found.effective == pytest.approx(3)
    drawn = torch.randn(P, 500, generator=torch.Generator().manual_seed(0))
    spread = spectrum([drawn])
    assert len(spread.key) >= 9
    assert spread.effective > 10.5
    basis = fourier_basis(P)
    assert torch.allclose(basis @ basis.T, torch.eye(P - 1, dtype=torch.float64), atol=1e-9)


def test_taking_a_frequency_out_takes_its_circle_out_of_the_logits(exact) -> None:
    answer = targets(TASK, seed=0)
    left = without_frequencies(exact, [5])
    assert torch.allclose(left(all_pairs(P)), circles([2, 9]), atol=1e-4)
    assert margin(left, answer) < margin(exact, answer)
    unused = without_frequencies(exact, [1, 3, 11])
    assert torch.allclose(unused(all_pairs(P)), exact(all_pairs(P)), atol=1e-4)
    assert accuracy(without_frequencies(exact, KEYS), answer) < 0.1


def test_the_planes_of_a_site_hold_all_of_it_and_turn_with_what_they_should(exact) -> None:
    a, b = exact.tables()
    planes = torch.cat([table_planes(a, KEYS), table_planes(b, KEYS)])
    assert planes.shape == (6, 2, 27)
    z = wrap_module(exact, name="modular").run(all_pairs(P), capture=["pre"]).sites["pre"]
    assert torch.allclose(z, a[all_pairs(P)[:, 0]] + b[all_pairs(P)[:, 1]], atol=1e-5)
    basis = torch.linalg.qr(planes.flatten(0, 1).T).Q
    assert (z - z @ basis @ basis.T).norm() < 1e-3 * z.norm()
    sums = sum_planes(exact.hidden(z), P, KEYS)
    eye = torch.eye(2)
    assert all(torch.allclose(plane @ plane.T, eye, atol=1e-5) for plane in sums)
    # What the output reads of a + b is what it writes: neurons of one frequency.
    for place, plane in enumerate(sums):
        outside = torch.ones(27, dtype=torch.bool)
        outside[9 * place : 9 * place + 9] = False
        assert plane[:, outside].norm() < 1e-4


def test_two_latents_in_a_plane_cover_it_and_one_only_touches() -> None:
    planes = torch.eye(20)[:12].view(6, 2, 20)
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    whole = measure_planes(reader(torch.eye(20)[:12]), planes, x)
    assert (whole.covered, whole.touched, whole.precision, whole.spokes) == (1, 1, 1, 2)
    assert whole.angle == pytest.approx(1, abs=1e-5)
    assert whole.nearest_by_chance < 0.7
    assert whole.angle_by_chance < 0.5
    half = measure_planes(reader(torch.eye(20)[:12:2]), planes, x)
    assert (half.touched, half.covered, half.spokes) == (1, 0, 1)
    turn = torch.tensor([0.0, 0.5, 1.0, 2.0])
    spokes = torch.zeros(4, 20)
    spokes[:, 0], spokes[:, 1] = turn.cos(), turn.sin()
    one = measure_planes(reader(spokes), planes, x)
    assert (one.touched, one.covered) == pytest.approx((1 / 6, 1 / 6))
    assert (one.spokes, one.spurious) == (4, 0)


def test_latents_across_planes_are_not_in_them_and_a_line_is_no_plane() -> None:
    planes = torch.eye(20)[:12].view(6, 2, 20)
    x = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    mixed = torch.eye(20)[0:12:2] + torch.eye(20)[[2, 4, 6, 8, 10, 0]]
    found = measure_planes(reader(mixed), planes, x)
    assert (found.touched, found.covered, found.precision) == (0, 0, 0)
    line = torch.eye(20)[[0, 0]] * torch.tensor([[1.0], [2.0]])
    assert measure_planes(reader(line), planes[:1], x).angle == 0
    none = measure_planes(reader(torch.eye(20)[13:]), planes, x)
    assert none.spurious == none.alive == 7
    with pytest.raises(UserError, match="Planes of 20 dimensions"):
        measure_planes(reader(torch.eye(5)), planes, x[:, :5])


def test_a_trained_network_generalises_with_few_frequencies_that_matter() -> None:
    model, answer = train_modular(TASK, seed=0), targets(TASK, seed=0)
    assert accuracy(model, answer, held_out(TASK, seed=0)) > 0.95
    found = embedding_spectrum(model)
    assert found.effective < 7
    assert len(found.key) < 9
    used = accuracy(without_frequencies(model, found.key), answer)
    others = [k for k in range(1, 12) if k not in found.key]
    assert used < 0.3
    assert accuracy(without_frequencies(model, others), answer) > 0.9


def test_a_network_that_learns_random_answers_has_no_few_frequencies() -> None:
    task = TASK.model_copy(update={"labels": "random", "train_share": 1.0, "steps": 400})
    model = train_modular(task, seed=0)
    assert accuracy(model, targets(task, seed=0)) > 0.3
    assert embedding_spectrum(model).effective > 8.5
