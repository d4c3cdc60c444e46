"""The store of firings against brute force over a dense matrix."""

from pathlib import Path

import numpy as np
import pytest

from unweave.artifact.arrays import save_array
from unweave.artifact.firings import FILES, Firings, write_firings
from unweave.errors import UserError

TOKENS, LATENTS = 300, 40


def planted(seed: int, *, signed: bool) -> np.ndarray:
    """A dense [tokens, latents] matrix of half-precision values, mostly zero, with ties."""
    random = np.random.default_rng(seed)
    values = random.integers(1, 20, (TOKENS, LATENTS)) / 8
    if signed:
        values *= random.choice([-1, 1], values.shape)
    values[random.random(values.shape) < 0.9] = 0
    values[:, 7] = 0  # a dead latent
    values[50:60] = 0  # tokens at which nothing fires
    return values


def written(folder: Path, dense: np.ndarray) -> Firings:
    token, latent = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(1))])
    kept = write_firings(folder, latent, dense[token, latent], indptr, dense.shape[1])
    assert kept == (len(token), 0, 0)
    return Firings.open(folder)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_question_is_answered_as_the_dense_matrix_does(
    tmp_path: Path, seed: int, signed: bool
) -> None:
    dense = planted(seed, signed=signed)
    firings = written(tmp_path, dense)
    assert (firings.n_tokens, firings.n_latents) == dense.shape
    assert len(firings) == np.count_nonzero(dense)
    assert firings.faults() == []
    assert np.array_equal(firings.counts(), (dense != 0).sum(0))
    for token in range(TOKENS):
        place, value = firings.of_token(token)
        assert np.array_equal(place, np.nonzero(dense[token])[0])
        assert np.array_equal(value, dense[token, place])
    for latent in range(LATENTS):
        where = np.nonzero(dense[:, latent])[0]
        order = np.lexsort((where, -np.abs(dense[where, latent])))
        place, value = firings.of_latent(latent)
        assert np.array_equal(place, where[order])
        assert np.array_equal(value, dense[where[order], latent])
        assert np.array_equal(firings.of_latent(latent, limit=3).place, place[:3])
        assert np.array_equal(firings.column(latent), dense[:, latent])


def test_the_order_within_a_token_is_kept(tmp_path: Path) -> None:
    write_firings(tmp_path, np.array([5, 2, 9]), np.array([1.0, 3.0, 2.0]), np.array([0, 3]), 10)
    assert list(Firings.open(tmp_path).of_token(0).place) == [5, 2, 9]


def test_values_outside_half_precision_are_counted(tmp_path: Path) -> None:
    value = np.array([1.0, 1e-9, 0.0, 7e4, -1e9])
    kept = write_firings(tmp_path, np.arange(5), value, np.array([0, 2, 2, 5]), 5)
    assert kept == (3, 2, 2)
    firings = Firings.open(tmp_path)
    assert firings.faults() == []
    assert list(firings.token_indptr) == [0, 1, 1, 3]
    assert list(firings.of_token(2).value) == [65504, -65504]


def test_the_limits_of_the_sort_key(tmp_path: Path) -> None:
    latent = np.array([0, (1 << 20) - 1])
    write_firings(tmp_path, latent, np.array([6e-8, 65504.0]), np.array([0, 2]), 1 << 20)
    firings = Firings.open(tmp_path)
    assert firings.of_latent((1 << 20) - 1) == (0, 65504)
    assert firings.column(0)[0] == np.float16(6e-8)
    with pytest.raises(ValueError, match="exceed one part's store"):
        write_firings(tmp_path, latent, np.ones(2), np.array([0, 2]), (1 << 20) + 1)


def test_nothing_at_all(tmp_path: Path) -> None:
    write_firings(tmp_path, np.zeros(0, int), np.zeros(0), np.zeros(4, int), 3)
    firings = Firings.open(tmp_path)
    assert firings.faults() == []
    assert (firings.n_tokens, firings.n_latents, len(firings)) == (3, 3, 0)
    assert len(firings.of_latent(2).place) == len(firings.of_token(0).place) == 0


@pytest.mark.parametrize(
    ("latent", "value", "indptr", "said"),
    [
        ([0, 3], [1, 1], [0, 1, 2], "outside 0..2"),
        ([0, -1], [1, 1], [0, 1, 2], "outside 0..2"),
        ([0, 1], [1, np.nan], [0, 1, 2], "NaN"),
        ([0, 1], [1, 1], [0, 2, 1, 2], "must rise"),
        ([0, 1], [1, 1], [0, 1], "must rise"),
    ],
)
def test_impossible_firings_are_refused(
    tmp_path: Path, latent: list[int], value: list[float], indptr: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        write_firings(tmp_path, np.array(latent), np.array(value), np.array(indptr), 3)
    assert list(tmp_path.iterdir()) == []


DAMAGE = {
    "latent": lambda a: np.where(np.arange(len(a)) == 5, LATENTS, a),
    "value": lambda a: np.where(np.arange(len(a)) == 5, a + np.float16(0.125), a),
    "token": lambda a: np.roll(a, 1),
    "value_by_latent": lambda a: a[::-1],
    "token_indptr": lambda a: np.concatenate([a[:1], a[1:-1] + 1, a[-1:]]),
    "latent_indptr": lambda a: np.concatenate([a[:3], a[4:5] + 1, a[4:]]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_any_array_is_found(tmp_path: Path, name: str) -> None:
    firings = written(tmp_path, planted(0, signed=False))
    before = np.array(getattr(firings, name))
    after = DAMAGE[name](before).astype(before.dtype)
    assert not np.array_equal(before, after)
    save_array(tmp_path / f"{name}.npy", after)
    assert Firings.open(tmp_path).faults() != []


def test_a_latent_that_fires_twice_at_a_token_is_found(tmp_path: Path) -> None:
    write_firings(tmp_path, np.array([1, 1]), np.array([1.0, 2.0]), np.array([0, 2]), 3)
    assert Firings.open(tmp_path).faults() == ["a latent fires twice at one token"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_array_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, planted(0, signed=False))
    path = tmp_path / f"{name}.npy"
    save_array(path, np.load(path)[:-1])
    with pytest.raises(UserError, match="differ in how many firings"):
        Firings.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=rf"No file .*{name}.npy"):
        Firings.open(tmp_path)
