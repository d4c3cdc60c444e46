"""Fitted exponents, the memory's formula and the paper plan against sums done by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cost_curves import fits, power_law
from benchmarks.memory import needed
from benchmarks.paper_plan import (
    WHAT,
    Assumed,
    Plan,
    assumptions,
    least_devices,
    limits,
    plans,
    widest,
)

ROOT = Path(__file__).resolve().parents[2]


def test_a_power_law_is_found_with_no_interval_left() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    law = power_law(x, [3 * v**1.5 for v in x])
    assert law["exponent"] == pytest.approx(1.5)
    assert law["factor"] == pytest.approx(3)
    assert law["high"] - law["low"] < 1e-6


def test_an_interval_is_that_of_least_squares() -> None:
    # log x = 0 to 3 and residuals of +-e: the spread of log x is 5, t with two degrees is 4.303.
    e, x = 0.1, [math.exp(i) for i in range(4)]
    y = [math.exp(i + e * (-1) ** i) for i in range(4)]
    slope = 1 + (-1.5 * e + 0.5 * e + 0.5 * e - 1.5 * e) / 5
    left = sum((i + e * (-1) ** i - 1.5 - slope * (i - 1.5)) ** 2 for i in range(4))
    law = power_law(x, y)
    assert law["exponent"] == pytest.approx(slope)
    assert law["high"] - slope == pytest.approx(4.303 * math.sqrt(left / 2 / 5))


def test_a_constant_part_shows_as_a_steeper_upper_half() -> None:
    rows = [{"at": n, "cpu_s": 100 + n, "grown_bytes": 7.0 * n} for n in (10, 100, 1000, 10_000)]
    found = fits(rows)
    assert found["cpu_s, upper half"]["exponent"] > found["cpu_s, all"]["exponent"] + 0.1
    assert found["grown_bytes, all"]["exponent"] == pytest.approx(1)


def test_what_training_needs_is_weights_moments_and_a_batch() -> None:
    # 3 latents of width 2: matrices of 6 each, offsets of 3 and 2; three copies; 5 vectors.
    assert needed(latents=3, width=2, batch=5) == 4 * (3 * (6 + 6 + 3 + 2) + 10)


def test_the_plan_is_what_its_assumptions_come_to() -> None:
    plan = Plan(Assumed(), devices=40)
    assert plan.weights == 2 * 8192 * 1e7
    assert plan.encoder_s == pytest.approx(2 * 8192 * 1e7 * 131_072 / (989e12 * 0.6) / 40)
    assert plan.network_bytes == 3 * 131_072 * 8192 * 2 + 2 * 131_072 * 128 * 8
    # 2.29 TB over 68 GB a device is 33.7 devices: five nodes of eight.
    assert least_devices(Assumed()) == 40
    assert set(WHAT) == set(Assumed.__dataclass_fields__)


def test_beyond_the_widest_the_network_sets_the_pace() -> None:
    a = Assumed()
    within, beyond = Plan(a, widest(a) // 2), Plan(a, widest(a) * 2)
    assert within.step_s > within.network_s
    assert beyond.step_s == beyond.network_s
    assert widest(replace(a, peak_network=a.peak_network / 2)) < widest(a)


def test_the_page_shows_what_the_plan_prints() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    for table in (assumptions(), plans(), limits()):
        assert table in page
