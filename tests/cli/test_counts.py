"""Counts of tokens as people write them."""

import pytest

from unweave.cli.counts import parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("400k", 400_000),
        ("2M", 2_000_000),
        ("1.5M", 1_500_000),
        ("0.128k", 128),
        ("1B", 10**9),
        ("1G", 10**9),
        ("400_000", 400_000),
        ("400,000", 400_000),
        (" 7 ", 7),
        ("0.3M", 300_000),  # 0.3 * 10**6 is not whole in floating point
    ],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "k", "-3", "4x", "1.5", "0", "0k", "1e6", "nan", "4 k", "400kk", "٤", "0.0001k"]
)
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (whole )?count"):
        parse_count(text)
