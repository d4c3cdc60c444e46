"""Numbers as people read them: one rule per unit, true minus signs, a dash for what is unknown."""

import math

from unweave.artifact.scores import Interval

UNKNOWN = "–"
Amount = float | int | None
"""What may be shown; None is unknown."""


def plain(number: Amount, digits: int = 3) -> str:
    """`digits` decimals: `0.118`, `−2.000`."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    shown = f"{number:,.{digits}f}"
    if not shown.strip("-0.,"):
        shown = shown.lstrip("-")  # nobody measured a negative nothing
    return shown.replace("-", "−")


def signed(number: Amount, digits: int = 3) -> str:
    """As `plain`, with a plus in front of what is not negative."""
    shown = plain(number, digits)
    return shown if shown == UNKNOWN or shown.startswith("−") else f"+{shown}"


def short(number: Amount) -> str:
    """Three significant digits whatever the size: `0.00123`, `12.3`, `4.56k`, `7.8M`."""
    if number is None or not math.isfinite(number):
        return UNKNOWN
    size = abs(number)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{number / scale:.3g}{suffix}".replace("-", "−")
    if size >= 1000:
        return f"{number:,.0f}".replace("-", "−")
    if size and size < 1e-4:
        return f"{number:.1e}".replace("-", "−").replace("e−0", "e−")
    return f"{number:.3g}".replace("-", "−")


def percent(share: Amount, digits: int = 1) -> str:
    """`86.0%`; small shares keep two significant digits."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    value = 100 * share
    if 0 < abs(value) < 0.1:
        return f"{value:.2g}%"
    return f"{value:.{digits}f}%"


def count(number: Amount) -> str:
    """`400,000`."""
    return UNKNOWN if number is None or not math.isfinite(number) else f"{number:,.0f}"


def interval(measured: Interval | None, digits: int = 3) -> str:
    """`0.110 to 0.126`, or nothing where no interval was measured."""
    if measured is None or measured.low is None or measured.high is None:
        return ""
    return f"{plain(measured.low, digits)} to {plain(measured.high, digits)}"


def size(size_in_bytes: Amount) -> str:
    """`3.10 GB`, in powers of a thousand."""
    if size_in_bytes is None or not math.isfinite(size_in_bytes):
        return UNKNOWN
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_in_bytes >= limit:
            return f"{size_in_bytes / limit:.3g} {unit}"
    return f"{size_in_bytes:.0f} bytes"


def duration(seconds: Amount) -> str:
    """`3 min 41 s`, `1 h 05 min`, `0.4 s`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
