"""Every world is ready for every coder, and says what it cannot be asked."""

import pytest
import torch

from unweave.dictionaries.baselines.kmeans import kmeans
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.errors import UserError
from unweave.validate.truth.measure import METRICS, measure_world
from unweave.validate.worlds import catalogue
from unweave.validate.worlds.catalogue import WORLDS, load_world
from unweave.validate.worlds.world import Directions, Hidden, Turning

MEANT = {
    "planted, independent": {"recovery"},
    "planted, pairs": {"recovery", "hedging"},
    "planted, families": {"recovery", "absorption", "hedging"},
    "planted, zipf": {"recovery"},
    "planted, noise": {"recovery"},
    "tms, 5-2": {"recovery"},
    "tms, 40-10": {"recovery"},
    "tms, 100-20": {"recovery"},
    "compressed": {"recovery"},
    "language, mess3": {"states"},
    "language, sparse": {"states"},
    "language, nested": {"states"},
    "modular, hand-set": {"planes"},
    "modular, trained": {"planes"},
}


UNEXPLAINED = {"planted, noise": 0.2, "tms, 40-10": 0.2, "compressed": 0.2}
"""Of the energy, what the truth leaves: noise, features hardly there, what is not linear."""


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """Networks that are barely trained: here it matters that worlds fit, not what is in them."""
    monkeypatch.setattr(catalogue, "ROWS", 3000)
    monkeypatch.setattr(catalogue, "HELD_OUT", 1500)
    for name in ("train_tms", "train_compressed", "train_modular", "train_hmm_subject"):
        real = getattr(catalogue, name)

        def short(*args, real=real, seed):
            *before, settings = args
            return real(*before, settings.model_copy(update={"steps": 10}), seed=seed)

        monkeypatch.setattr(catalogue, name, short)


def test_the_test_knows_every_world() -> None:
    assert set(MEANT) == set(WORLDS)
    with pytest.raises(UserError, match="There is no world 'earth'"):
        load_world("earth", seed=0)


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_takes_any_coder_and_refuses_what_means_nothing(name: str) -> None:
    world = load_world(name, seed=0)
    assert world.name == name
    assert len(world.held_out) > 100
    assert len(world.train) > 500
    coders = {
        "clusters": kmeans(world.train, min(16, 2 * world.features), seed=0),
        "signed": pca(world.train, k=min(2, world.d)),
        "chance": random_directions(world.train, 2 * world.features, k=1, seed=1),
    }
    for coder in coders.values():
        report = measure_world(coder, world)
        asked = {m.split(".")[0] for m in report.refused} | set(report.numbers)
        assert asked == set(METRICS)
        assert set(report.numbers) <= MEANT[name] | {"fidelity"}
        for metric in set(METRICS) - MEANT[name] - {"fidelity"}:
            assert (
                "means nothing here" in report.refused[metric]
                or "mean nothing" in (report.refused[metric])
            )
        assert all(value == value for value in report.flat().values())
        for metric, numbers in report.numbers.items():
            assert numbers
            assert report.chance[metric] or metric == "hedging"


def test_the_truth_itself_scores_as_the_truth() -> None:
    world = load_world("planted, families", seed=0)
    assert isinstance(world.truth, Directions)
    directions = world.truth.directions
    told = FixedDictionary(directions, lambda x, d: orthogonal_matching_pursuit(x, d, k=4))
    found = measure_world(told, world)
    assert found.numbers["recovery"]["recall"] == 1
    assert found.numbers["hedging"]["writes"] == pytest.approx(0, abs=1e-5)
    assert found.numbers["absorption"]["taken_over"] < 0.2
    assert found.chance["recovery"]["recall"] == 0
    blank = random_directions(world.train, 256, k=4, seed=3)
    report = measure_world(blank, world)
    assert report.numbers["recovery"]["recall"] == 0
    assert "no latent is above the bar" in report.refused["recovery.slope"]
    assert "slope" not in report.numbers["recovery"]
    assert "none of the 16 parents" in report.refused["absorption"]


def test_what_is_learned_from_is_never_what_is_judged_on() -> None:
    for name in ("planted, pairs", "language, mess3", "modular, hand-set"):
        world = load_world(name, seed=0)
        seen = {tuple(row[:4].tolist()) for row in world.train}
        shared = sum(tuple(row[:4].tolist()) in seen for row in world.held_out)
        # The first positions of a language have few contexts, and repeat.
        assert shared < (0.9 if name.startswith("language") else 0.01) * len(world.held_out)
        again = load_world(name, seed=0)
        assert torch.equal(again.held_out, world.held_out)


def test_every_truth_fits_its_vectors() -> None:
    names = "planted, noise", "tms, 40-10", "compressed", "language, nested", "modular, hand-set"
    for name in names:
        world = load_world(name, seed=1)
        rows = len(world.held_out)
        match world.truth:
            case Directions(directions, code):
                assert directions.shape == (world.features, world.d)
                assert code.support.rows == rows
                assert code.l0() == pytest.approx(world.k, rel=0.05)
                left = (world.held_out - code.dense() @ directions).square().sum()
                unexplained = (left / world.held_out.square().sum()).item()
                assert unexplained < UNEXPLAINED[name]
            case Turning(planes):
                assert planes.shape[1:] == (2, world.d)
            case Hidden(states, beliefs, tokens):
                assert len(states) == len(beliefs) == len(tokens) == rows
                told = beliefs.argmax(1) == states
                assert told.float().mean() > 2 / beliefs.shape[1]


def test_the_example_in_the_catalogue_is_true() -> None:
    code = catalogue.__doc__.split("```python\n")[1].split("```")[0]
    known = {"load_world": load_world, "measure_world": measure_world, "kmeans": kmeans}
    exec(code, known)
    report = known["report"]
    assert report.numbers["recovery"]["mmcs"] > report.chance["recovery"]["mmcs"]


def test_only_what_is_asked_is_measured() -> None:
    world = load_world("modular, hand-set", seed=0)
    coder = pca(world.train, k=2)
    report = measure_world(coder, world, metrics=["planes", "absorption"])
    assert set(report.numbers) == {"planes"}
    assert set(report.refused) == {"absorption"}
    assert "planes.nearest by chance" in report.flat()
    with pytest.raises(UserError, match="no metric 'beauty'"):
        measure_world(coder, world, metrics=["beauty"])
