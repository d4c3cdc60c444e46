"""Chance levels and spreads over seeds."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from told_coder import ToldCoder

from unweave.errors import UserError
from unweave.validate.truth.chance import random_directions_of, recovery_beside_chance
from unweave.validate.truth.seeds import over_seeds
from unweave.validate.worlds.features import PlantedSettings, planted_world


def compared(d: int, n: int, latents: int):
    world = planted_world(PlantedSettings(d=d, n_features=n, mean_active=1.0), seed=0)
    x, truth = world.draw(1500, seed=1)
    W_dec = world.directions.repeat(latents // n, 1)
    coder = ToldCoder(W_dec, torch.cat([x, torch.zeros(len(x), 3)], 1), truth)
    coder._known = {
        tuple(row[:3].tolist()): torch.cat([code] * (latents // n))
        for row, code in zip(x, truth.dense(), strict=True)
    }
    return recovery_beside_chance(coder, world.directions, x, truth)


def test_the_truth_stands_far_above_chance_in_many_dimensions() -> None:
    found, chance = compared(48, 40, 80)
    assert found.mmcs == pytest.approx(1)
    assert chance.mmcs < 0.5
    assert chance.recall == chance.precision == chance.duplicates == 0
    assert found.alive == chance.alive == 80
    assert found.duplicates == 40
    assert chance.spurious > 70


def test_in_three_dimensions_chance_alone_looks_like_recovery() -> None:
    _, chance = compared(3, 4, 80)
    assert chance.mmcs > 0.9
    assert chance.found == 1
    assert chance.learned_true < 0.3


def test_a_twin_keeps_everything_but_its_directions() -> None:
    world = planted_world(PlantedSettings(d=16, n_features=10, mean_active=1.0), seed=0)
    x, truth = world.draw(50, seed=1)
    coder = ToldCoder(3 * world.directions, x, truth)
    twin, again = random_directions_of(coder, seed=0), random_directions_of(coder, seed=0)
    assert torch.equal(twin.encode(x).dense(), coder.encode(x).dense())
    assert twin.directions().norm(dim=1).allclose(torch.full((10,), 3.0))
    assert torch.equal(twin.directions(), again.directions())
    assert not torch.equal(twin.directions(), random_directions_of(coder, seed=1).directions())


def test_a_spread_says_over_how_many_seeds() -> None:
    runs = [{"a": 1.0, "b": None}, {"a": 2.0, "b": 4.0}, {"a": 3.0}]
    found = over_seeds(runs)
    assert found["a"] == (2.0, 1.0, 3)
    assert found["b"] == (4.0, 0.0, 1)
    assert str(found["a"]) == "2.000 ± 1.000 (3 seeds)"
    assert str(over_seeds([{"a": float(i)} for i in range(5)])["a"]) == "2.000 ± 1.581"
    assert "c" not in over_seeds([{"c": None}])
    with pytest.raises(UserError, match="no runs"):
        over_seeds([])
