import numpy as np
import pytest

from unweave.validate.bootstrap import (
    BootstrapSettings,
    Interval,
    mean_interval,
    ratio_interval,
    resample_counts,
)


def test_a_resample_draws_as_many_as_there_are() -> None:
    counts = resample_counts(50, BootstrapSettings(resamples=30))
    assert counts.shape == (30, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert abs((counts == 0).mean() - np.exp(-1)) < 0.05


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=1000)
    found = mean_interval(values, BootstrapSettings(resamples=4000))
    half = 1.96 * values.std() / np.sqrt(1000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    settings = BootstrapSettings(resamples=300, level=0.9)
    covered = 0
    for _ in range(300):
        found = mean_interval(random.exponential(1.0, size=80), settings)
        covered += found.low <= 1.0 <= found.high
    assert 0.82 <= covered / 300 <= 0.95


def test_a_wider_level_is_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=100)
    narrow, wide = (mean_interval(values, BootstrapSettings(level=x)) for x in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_ratio_is_of_the_sums() -> None:
    found = ratio_interval(np.array([1.0, 9.0]), np.array([10.0, 10.0]))
    assert found.value == 0.5
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.9)


def test_weights() -> None:
    found = mean_interval(np.array([0.0, 4.0]), weights=np.array([3.0, 1.0]))
    assert found.value == 1.0


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, BootstrapSettings(seed=1))


@pytest.mark.parametrize("values", [np.zeros(0), np.zeros(3)])
def test_nothing_over_nothing_is_not_a_number(values: np.ndarray) -> None:
    assert np.isnan(ratio_interval(values, values)).all()


def test_one_value_has_no_width() -> None:
    assert mean_interval(np.array([2.0])) == Interval(2.0, 2.0, 2.0)
