"""Dictionaries whose recovery is known before it is measured."""

import math

import pytest
import torch

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.fidelity import measure_fidelity
from unweave.validate.recovery import measure_recovery, one_to_one
from unweave.validate.worlds.features import PlantedSettings, planted_world

SETTINGS = PlantedSettings(d=48, n_features=40, mean_active=3.0, n_parents=4, children=2)


class Told:
    """A dictionary that is told the true code and does something to it."""

    def __init__(self, W_dec, change=lambda true: true) -> None:
        self.W_dec, self.change = W_dec, change
        self.n_latents = len(W_dec)
        self.true = SparseCode.from_dense(torch.zeros(0, len(W_dec)))
        self.at = 0

    def encode(self, x):
        true = self.true.between(self.at, self.at + len(x)).dense()
        self.at += len(x)
        return SparseCode.from_dense(self.change(true))

    def decode(self, code):
        return code.dense() @ self.W_dec

    def directions(self):
        return self.W_dec


@pytest.fixture(scope="module")
def world():
    return planted_world(SETTINGS, seed=0)


def recover(world, coder, rows=6000):
    x, coder.true = world.draw(rows, seed=1)
    return measure_recovery(coder, world.directions, x, coder.true, parents=world.parents)


def test_the_truth_recovers_itself_whatever_its_order_and_scale(world) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found = recover(world, Told(world.directions[order] * 3.0, lambda t: t[:, order] / 3.0))
    assert found.features == found.alive == 40
    for name in ("found", "learned_true", "recall", "precision"):
        assert getattr(found, name) == 1, name
    for name in ("mmcs", "mmcs_reverse", "f1", "slope"):
        assert getattr(found, name) == pytest.approx(1), name
    assert (found.duplicates, found.spurious) == (0, 0)
    assert (found.absorption, found.parent_missed) == (0, 0)


def test_a_random_dictionary_recovers_nothing(world) -> None:
    drawn = torch.randn(80, 48, generator=torch.Generator().manual_seed(3))
    found = recover(world, Told(drawn, lambda t: torch.cat([t, t], 1)))
    assert found.recall == found.precision == found.found == 0
    assert found.mmcs < 0.6
    assert found.spurious > 60
    assert found.duplicates == 0
    assert math.isnan(found.f1)
    assert math.isnan(found.slope)
    assert math.isnan(found.absorption)


def test_a_truth_told_twice_is_half_duplicates(world) -> None:
    def halves(true):
        first = torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) < 0.5
        return torch.cat([true * first, true * ~first], 1)

    found = recover(world, Told(world.directions.repeat(2, 1), halves))
    assert found.duplicates == 40
    assert found.recall == 1
    assert found.learned_true == 1
    assert found.precision == 0.5
    assert found.f1 == pytest.approx(2 / 3, abs=0.02)


def test_latents_that_never_fire_are_not_learned(world) -> None:
    found = recover(world, Told(world.directions, lambda t: t * (torch.arange(40) < 10)))
    assert found.alive == 10
    assert found.recall == 0.25
    assert found.precision == 1
    assert found.mmcs < 0.6
    silent = recover(world, Told(world.directions, torch.zeros_like))
    assert (silent.alive, silent.recall, silent.mmcs) == (0, 0, 0)


@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_a_known_suppression_is_measured(world, factor: float) -> None:
    found = recover(world, Told(world.directions, lambda t: factor * t))
    assert found.slope == pytest.approx(factor, rel=1e-5)
    assert found.recall == found.f1 == pytest.approx(1)


def test_a_latent_that_fires_everywhere_has_a_poor_f1(world) -> None:
    found = recover(world, Told(world.directions, lambda t: t + 0.01))
    rate = 3.0 / 40
    assert found.f1 == pytest.approx(2 * rate / (1 + rate), abs=0.03)


def test_an_absorbing_dictionary_is_caught(world) -> None:
    child = world.parents >= 0
    W_dec = world.directions.clone()
    W_dec[child] += world.directions[world.parents[child]]

    def absorb(true):
        out = true.clone()
        for at in child.nonzero()[:, 0].tolist():
            out[true[:, at] > 0, world.parents[at]] = 0
        return out

    found = recover(world, Told(W_dec, absorb))
    assert found.absorption == 1
    assert found.parent_missed == 0
    assert found.recall == 1 - child.float().mean()


def test_missing_at_random_is_not_absorption(world) -> None:
    def forget(true):
        return true * (torch.rand(true.shape, generator=torch.Generator().manual_seed(0)) < 0.6)

    found = recover(world, Told(world.directions, forget))
    assert found.absorption == pytest.approx(0.4, abs=0.06)
    assert found.parent_missed == pytest.approx(0.4, abs=0.06)


def test_a_dictionary_with_signs_is_matched_by_its_lines(world) -> None:
    sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    found = recover(world, Told(world.directions * sign[:, None], lambda t: t * sign))
    assert found.recall == 1
    assert found.slope == pytest.approx(1)
    wrong = recover(world, Told(world.directions * sign[:, None]))
    assert wrong.recall == 0.5


def test_the_matching_is_the_best_in_sum_and_never_below_the_bar() -> None:
    closeness = torch.tensor([[0.99, 0.95, 0.0], [0.98, 0.2, 0.1], [0.5, 0.4, 0.89]])
    feature, latent = one_to_one(closeness)
    assert sorted(zip(feature.tolist(), latent.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert len(one_to_one(torch.zeros(3, 2))[0]) == 0


def test_another_width_is_refused(world) -> None:
    with pytest.raises(UserError, match="vectors of 48 numbers"):
        recover(world, Told(torch.eye(40)))


def test_fidelity_in_batches_is_fidelity_at_once(world) -> None:
    x, true = world.draw(500, seed=1)
    measured = []
    for batch in (500, 128):
        coder = Told(world.directions, lambda t: 0.5 * t)
        coder.true = true
        measured.append(measure_fidelity(coder, x, x, batch=batch))
    assert measured[0].gamma == pytest.approx(0.5, rel=1e-5)
    assert measured[0].l0 == pytest.approx(true.l0())
    assert measured[1][:-1] == pytest.approx(measured[0][:-1])
    assert measured[1].density == measured[0].density
    with pytest.raises(UserError, match="as many inputs as targets"):
        measure_fidelity(coder, x, x[:10])
