import math

import pytest
import torch

from unweave.errors import UserError
from unweave.validate.worlds.features import CHUNK, PlantedSettings, planted_world
from unweave.validate.worlds.peers_workload import peers_workload

SMALL = PlantedSettings(d=32, n_features=60, mean_active=4.0)


def rates(world, rows=20_000, seed=5):
    code = world.draw(rows, seed=seed)[1]
    return code.fired() / rows


def test_vectors_are_the_sum_they_are_said_to_be() -> None:
    world = planted_world(SMALL, seed=0)
    x, code = world.draw(300, seed=1)
    assert x.shape == (300, 32)
    assert code.value.min() > 0
    torch.testing.assert_close(x, code.dense() @ world.directions, atol=1e-5, rtol=1e-5)
    assert world.directions.norm(dim=1).allclose(torch.ones(60))


def test_vectors_have_the_mean_norm_that_dictionaries_are_trained_at() -> None:
    for world in (planted_world(SMALL, seed=0), peers_workload(seed=0)):
        norm = world.draw(4000, seed=3)[0].norm(dim=1).mean().item()
        assert norm == pytest.approx(math.sqrt(world.d), rel=0.03)


def test_a_row_is_the_same_whatever_was_drawn_before_it() -> None:
    world = planted_world(SMALL.model_copy(update={"noise_share": 0.1}), seed=0)
    whole, truth = world.draw(2 * CHUNK + 50, seed=1)
    part, code = world.draw(CHUNK, seed=1, start=CHUNK - 20)
    assert torch.equal(part, whole[CHUNK - 20 : 2 * CHUNK - 20])
    assert torch.equal(code.dense(), truth.dense()[CHUNK - 20 : 2 * CHUNK - 20])
    again = planted_world(SMALL.model_copy(update={"noise_share": 0.1}), seed=0)
    assert torch.equal(again.draw(10, seed=1)[0], whole[:10])


def test_the_seeds_of_world_and_data_are_two() -> None:
    first, other = planted_world(SMALL, seed=0), planted_world(SMALL, seed=1)
    assert not torch.equal(first.directions, other.directions)
    mine, theirs = first.draw(50, seed=1)[1], other.draw(50, seed=1)[1]
    assert torch.equal(mine.support.latent, theirs.support.latent)
    assert not torch.equal(first.draw(50, seed=2)[1].value[:50], mine.value[:50])


def test_features_fire_as_often_as_asked() -> None:
    for update in ({}, {"firing": "zipf"}, {"group_size": 2}, {"n_parents": 5, "firing": "zipf"}):
        world = planted_world(SMALL.model_copy(update=update), seed=0)
        expected = world._activity.rates
        assert rates(world).sum().item() == pytest.approx(4.0, rel=0.05)
        error = (rates(world) - expected).abs() / (expected / 20_000).sqrt()
        assert error.max() < 5
    zipf = planted_world(SMALL.model_copy(update={"firing": "zipf"}), seed=0)._activity.rates
    assert (zipf[0] / zipf[59]).item() == pytest.approx(60**0.7, rel=1e-4)


def test_pairs_fire_together_and_others_do_not() -> None:
    world = planted_world(SMALL.model_copy(update={"group_size": 2, "correlation": 0.8}), seed=0)
    group = world._activity._group
    fires = (world.draw(20_000, seed=1)[1].dense() > 0).double()
    correlation = torch.corrcoef(fires.T)
    same = (group[:, None] == group[None]) & ~torch.eye(60, dtype=torch.bool)
    assert same.sum() == 60
    assert (group[::2] != group[1::2]).any()
    assert correlation[same].min() > 0.3
    assert correlation[~same & ~torch.eye(60, dtype=torch.bool)].abs().max() < 0.05


def test_a_child_never_comes_without_its_parent() -> None:
    world = planted_world(SMALL.model_copy(update={"n_parents": 5, "children": 3}), seed=0)
    assert (world.parents >= 0).sum() == 15
    fires = world.draw(20_000, seed=1)[1].dense() > 0
    child = (world.parents >= 0).nonzero()[:, 0]
    parent = world.parents[child]
    assert not (fires[:, child] & ~fires[:, parent]).any()
    given = (fires[:, child].sum(0) / fires[:, parent].sum(0)).double()
    assert (given - 0.3).abs().max() < 0.06


@pytest.mark.parametrize("kind", ["isotropic", "anisotropic"])
def test_noise_has_its_share_of_the_energy(kind: str) -> None:
    world = planted_world(SMALL.model_copy(update={"noise_share": 0.2, "noise": kind}), seed=0)
    x, code = world.draw(20_000, seed=1)
    noise = x - code.dense() @ world.directions
    share = noise.square().sum() / code.value.square().sum()
    assert share.item() == pytest.approx(0.2, rel=0.05)
    spread = torch.linalg.eigvalsh(noise.T.cov())
    ratio = (spread[-1] / spread[0]).item()
    assert ratio < 1.3 if kind == "isotropic" else 25 < ratio < 40


def test_the_peers_workload_is_what_the_peers_were_measured_on() -> None:
    world = peers_workload(seed=0)
    _, code = world.draw(3000, seed=1)
    assert world.directions.shape == (4096, 576)
    assert code.l0() == 20
    assert (code.support.offsets.diff() == 20).all()
    group = (code.support.latent // 16).view(3000, 5, 4)
    assert (group == group[:, :, :1]).all()
    assert all(len(set(row)) == 5 for row in group[:, :, 0].tolist())
    logs = code.value.log().view(3000, 5, 4)
    within = (logs - logs.mean(-1, keepdim=True)).square().sum(-1).mean() / 3
    assert within.sqrt().item() == pytest.approx(0.3, rel=0.03)
    assert logs.var().sqrt().item() == pytest.approx(0.3 * 2**0.5, rel=0.03)
    fired = code.fired().view(256, 16).sum(1)
    assert fired[:8].sum() > 8 * fired[128:136].sum() / 2


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(UserError, match="do not fit into 60"):
        planted_world(SMALL.model_copy(update={"n_parents": 30, "children": 2}), seed=0)
    with pytest.raises(UserError, match="flatter firing"):
        planted_world(SMALL.model_copy(update={"firing": "zipf", "zipf_exponent": 3.0}), seed=0)
