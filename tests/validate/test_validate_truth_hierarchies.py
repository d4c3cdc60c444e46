"""Absorption and hedging of dictionaries that were made to absorb and to hedge."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from told_coder import ToldCoder

from unweave.errors import UserError
from unweave.validate.protocols.protocol import Refused
from unweave.validate.recovery import measure_recovery
from unweave.validate.truth.absorption import measure_absorption
from unweave.validate.truth.hedging import correlated_pairs, growth_hedging, measure_hedging
from unweave.validate.worlds.features import PlantedSettings, planted_world

FAMILIES = PlantedSettings(d=48, n_features=40, mean_active=3.0, n_parents=4, children=2)
PAIRS = PlantedSettings(d=40, n_features=40, mean_active=4.0, group_size=2, correlation=0.8)
ROWS = 3000


class Drawn:
    """Rows of a world, with its directions made orthogonal where there is room."""

    def __init__(self, settings: PlantedSettings) -> None:
        self.world = planted_world(settings, seed=0)
        self.world.directions = torch.linalg.qr(self.world.directions.T).Q.T[: settings.n_features]
        self.parents = self.world.parents
        self.x, self.truth = self.world.draw(ROWS, seed=1)
        self.directions = self.world.directions

    def told(self, W_dec=None, change=lambda true: true):
        W_dec = self.directions if W_dec is None else W_dec
        return ToldCoder(W_dec, self.x, self.truth, change)

    def absorption(self, coder):
        return measure_absorption(coder, self.directions, self.x, self.truth, self.parents)

    def hedging(self, coder):
        return measure_hedging(coder, self.directions, self.x, self.truth, parents=self.parents)


@pytest.fixture(scope="module")
def families():
    return Drawn(FAMILIES)


@pytest.fixture(scope="module")
def pairs():
    return Drawn(PAIRS)


def absorb(drawn, share=1.0):
    """Children write their parent, whose latent is silent wherever a child is."""
    child = (drawn.parents >= 0).nonzero()[:, 0]

    def change(true):
        out = true.clone()
        for at in child.tolist():
            out[true[:, at] > 0, drawn.parents[at]] = 0
        return out

    W_dec = drawn.directions.clone()
    W_dec[child] += share * drawn.directions[drawn.parents[child]]
    return drawn.told(W_dec, change)


def test_the_truth_absorbs_nothing(families) -> None:
    found = families.absorption(families.told())
    assert found.parents == 4
    assert tuple(found)[1:] == (0, 0, 0, 0)


def test_a_dictionary_that_absorbs_is_caught_and_one_that_writes_too_little_is_not(families):
    caught = families.absorption(absorb(families))
    assert caught.silent == 1
    # A child of strength c writes c of a parent of strength p: c / p is above 0.4 in 0.8 of the
    # rows where both are uniform, and in more where both children are there.
    assert 0.75 < caught.taken_over < 0.9
    assert caught.silent_alone == caught.taken_over_alone == 0
    faint = families.absorption(absorb(families, share=0.05))
    assert faint.silent == 1
    assert faint.taken_over < 0.15


def test_leaving_out_what_is_weakest_is_silence_but_not_absorption(families) -> None:
    def strongest(true):
        value, at = true.topk(2, dim=1)
        return torch.zeros_like(true).scatter(1, at, value)

    coder = families.told(change=strongest)
    recovery = measure_recovery(
        coder, families.directions, families.x, families.truth, parents=families.parents
    )
    found = families.absorption(coder)
    # The older measure, which looks at silence alone, takes a budget for absorption.
    assert recovery.absorption - recovery.parent_missed > 0.1
    assert found.silent - found.silent_alone > 0.1
    assert found.taken_over == found.taken_over_alone == 0


def test_absorption_is_refused_where_nothing_could_be_absorbed(families, pairs) -> None:
    with pytest.raises(Refused, match="no feature of this world has a parent"):
        pairs.absorption(pairs.told())
    drawn = torch.randn(40, 48, generator=torch.Generator().manual_seed(3))
    with pytest.raises(Refused, match="none of the 4 parents has a latent"):
        families.absorption(families.told(drawn))


def test_a_clean_dictionary_does_not_hedge(pairs, families) -> None:
    for world in (pairs, families):
        found = world.hedging(world.told())
        assert found.pairs >= 8
        assert found.writes == pytest.approx(0, abs=1e-6)
        assert found.reads == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("a", [0.3, 0.8])
def test_a_known_hedge_is_measured_in_what_is_written_and_read(pairs, a: float) -> None:
    correlated = correlated_pairs(pairs.truth, pairs.parents, seed=0)[0]
    assert len(correlated.f) == 40
    partner = correlated.g[correlated.f.argsort()]
    wanted = a / math.sqrt(1 + a * a)

    writing = pairs.hedging(pairs.told(pairs.directions + a * pairs.directions[partner]))
    assert writing.writes == pytest.approx(wanted, abs=1e-5)
    assert writing.reads == pytest.approx(0, abs=1e-6)
    assert abs(writing.writes_uncorrelated) < 0.05
    reading = pairs.hedging(pairs.told(change=lambda true: true + a * true[:, partner]))
    assert reading.writes == pytest.approx(0, abs=1e-6)
    assert reading.reads == pytest.approx(wanted, abs=0.01)
    against = pairs.hedging(pairs.told(pairs.directions - a * pairs.directions[partner]))
    assert against.writes == pytest.approx(-wanted, abs=1e-5)


def test_a_mixture_of_what_does_not_go_together_is_no_hedge(pairs) -> None:
    correlated = correlated_pairs(pairs.truth, pairs.parents, seed=0)[0]
    partner = correlated.g[correlated.f.argsort()]
    stranger = next(
        shifted
        for by in range(1, 40)
        if not ((shifted := (torch.arange(40) + by) % 40) == partner).any()
    )
    found = pairs.hedging(pairs.told(pairs.directions + 0.8 * pairs.directions[stranger]))
    assert found.writes == pytest.approx(0, abs=1e-5)


def test_a_child_that_writes_its_parent_absorbs_and_does_not_hedge(families) -> None:
    correlated = correlated_pairs(families.truth, families.parents, seed=0)[0]
    child = correlated.f[families.parents[correlated.f] == correlated.g]
    assert not len(child)
    W_dec = families.directions.clone()
    born = (families.parents >= 0).nonzero()[:, 0]
    W_dec[born] += 0.5 * families.directions[families.parents[born]]
    assert families.hedging(families.told(W_dec)).writes == pytest.approx(0, abs=0.01)
    W_dec = families.directions.clone()
    W_dec.index_add_(0, families.parents[born], 0.4 * families.directions[born])
    # Half of the pairs are parents with a child, the others siblings, which are clean.
    wanted = 0.4 / math.sqrt(1 + 2 * 0.4**2) / 2
    assert families.hedging(families.told(W_dec)).writes == pytest.approx(wanted, abs=1e-5)


def test_hedging_is_refused_where_nothing_is_correlated(pairs) -> None:
    alone = Drawn(PAIRS.model_copy(update={"group_size": 1}))
    with pytest.raises(Refused, match="no two features of this world are correlated"):
        alone.hedging(alone.told())
    silent = pairs.told(change=torch.zeros_like)
    with pytest.raises(Refused, match="nearest of any latent"):
        pairs.hedging(silent)


def test_signed_latents_are_turned_before_they_are_judged(pairs) -> None:
    sign = torch.where(torch.arange(40) % 2 == 0, 1.0, -1.0)
    correlated = correlated_pairs(pairs.truth, pairs.parents, seed=0)[0]
    partner = correlated.g[correlated.f.argsort()]
    W_dec = (pairs.directions + 0.5 * pairs.directions[partner]) * sign[:, None]
    found = pairs.hedging(pairs.told(W_dec, lambda true: true * sign))
    assert found.writes == pytest.approx(0.5 / math.sqrt(1.25), abs=1e-5)


def test_what_growing_takes_out_of_old_latents_is_their_degree_of_hedging() -> None:
    eye = torch.eye(60)
    before = F.normalize(eye[:8] + 0.6 * eye[20:28], dim=1)
    clean = torch.cat([eye[:8], eye[20:28]])
    moved = (eye[:8] - before)[:, 20:28].norm(dim=1).mean()
    found = growth_hedging(before, clean)
    assert 0.2 < found < moved
    untouched = torch.cat([before, eye[20:28]])
    assert growth_hedging(before, untouched) == 0
    elsewhere = torch.cat([eye[:8], eye[40:48]])
    assert growth_hedging(before, elsewhere) == 0
    with pytest.raises(UserError, match="grown from 8 latents"):
        growth_hedging(before, before)
