"""Counts of tokens as people write them: `400k`, `2M`, `400_000`."""

import re
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter, Token

_FORM = re.compile(r"(?P<number>[0-9][0-9_,]*(\.[0-9]+)?)(?P<unit>[kKmMgGbB]?)")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


def parse_count(text: str) -> int:
    """`400k` is 400,000, `2M` two million, `1.5M` one and a half; ValueError for anything else."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no count: write 400000, 400k or 2M")
    whole, _, decimals = match["number"].replace("_", "").replace(",", "").partition(".")
    unit = _UNITS[match["unit"].lower()]
    scaled, rest = divmod(int(whole + decimals) * unit, 10 ** len(decimals))
    if rest or not scaled:
        raise ValueError(f"{text!r} is no whole count above zero")
    return scaled


def _convert(type_: object, tokens: Sequence[Token]) -> int:
    return parse_count(tokens[0].value)


Count = Annotated[int, Parameter(converter=_convert)]
"""A flag that takes a count."""
