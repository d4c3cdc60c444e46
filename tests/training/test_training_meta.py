"""Directions composed of a few atoms are taken apart; directions of nothing are not."""

import pytest
import torch
from torch.nn.functional import normalize

from unweave.errors import UserError
from unweave.training.meta import MetaSettings, train_meta

ATOMS, WIDTH, DIRECTIONS, EACH = 40, 24, 400, 3
SETTINGS = MetaSettings(share=0.125, k=EACH, batch=200, steps=400, lr=5e-3)


def unit(*shape, seed):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.fixture(scope="module")
def composed():
    atoms = unit(ATOMS, WIDTH, seed=0)
    generator = torch.Generator().manual_seed(1)
    which = torch.rand(DIRECTIONS, ATOMS, generator=generator).topk(EACH, dim=1).indices
    weight = 0.5 + torch.rand(DIRECTIONS, EACH, generator=generator)
    directions = torch.zeros(DIRECTIONS, ATOMS).scatter(1, which, weight) @ atoms
    return atoms, train_meta(3 * directions, SETTINGS, seed=5)


def test_the_atoms_of_composed_directions_are_found(composed):
    atoms, meta = composed
    assert meta.explained > 0.85
    best = (atoms @ normalize(meta.dictionary.directions(), dim=1).T).amax(1)
    assert (best > 0.9).float().mean() > 0.75
    assert best.mean() > 0.9
    assert meta.l0 == pytest.approx(EACH, rel=0.25)
    assert meta.dictionary.n_latents == DIRECTIONS // 8
    assert len(meta.per_direction) == DIRECTIONS


def test_random_directions_are_explained_clearly_less(composed):
    meta = train_meta(unit(DIRECTIONS, WIDTH, seed=2), SETTINGS, seed=5)
    assert meta.explained < composed[1].explained - 0.2


def test_latents_that_write_nothing_do_not_count():
    directions = torch.cat([unit(40, 8, seed=0), torch.zeros(10, 8)])
    meta = train_meta(directions, MetaSettings(steps=3, batch=16, k=2))
    assert meta.dictionary.n_latents == 10
    assert len(meta.per_direction) == 40


def test_too_few_directions_are_refused():
    with pytest.raises(UserError, match="raise the share or lower k"):
        train_meta(unit(12, 8, seed=0))
