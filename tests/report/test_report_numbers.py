"""Numbers are shown by one rule per unit."""

import pytest

from unweave.artifact.scores import Interval
from unweave.report import numbers

NAN = float("nan")


@pytest.mark.parametrize(
    ("show", "number", "shown"),
    [
        (numbers.plain, 0.2184, "0.218"),
        (numbers.plain, -1.5, "−1.500"),
        (numbers.plain, None, "–"),
        (numbers.plain, NAN, "–"),
        (numbers.plain, -0.0004, "0.000"),
        (numbers.signed, -0.0004, "+0.000"),
        (numbers.signed, None, "–"),
        (numbers.signed, 0.0, "+0.000"),
        (numbers.signed, -0.25, "−0.250"),
        (numbers.short, 0.00123456, "0.00123"),
        (numbers.short, 1203.4, "1,203"),
        (numbers.short, 41_234, "41.2k"),
        (numbers.short, 135e6, "135M"),
        (numbers.short, 2.5e-7, "2.5e−7"),
        (numbers.short, 0, "0"),
        (numbers.percent, 0.8124, "81.2%"),
        (numbers.percent, 0.00034, "0.034%"),
        (numbers.percent, 0.0, "0.0%"),
        (numbers.count, 400_000, "400,000"),
        (numbers.size, 3_100_000_000, "3.1 GB"),
        (numbers.size, 999, "999 bytes"),
        (numbers.duration, 4.04, "4.0 s"),
        (numbers.duration, 59.4, "59 s"),
        (numbers.duration, 221.4, "3 min 41 s"),
        (numbers.duration, 3900, "1 h 05 min"),
    ],
)
def test_numbers_read_well(show, number, shown) -> None:
    assert show(number) == shown


def test_an_interval_is_shown_only_when_it_was_measured() -> None:
    assert numbers.interval(Interval(value=1.0, low=0.5, high=1.5)) == "0.500 to 1.500"
    assert numbers.interval(Interval(value=1.0)) == ""
    assert numbers.interval(None) == ""
