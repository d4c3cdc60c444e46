"""Budgets as people write them: `90s`, `20m`, `3h`, or operations such as `5e13`."""

import re

from unweave.errors import UserError

_TIME = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[smh])")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def read_budget(text: str | None) -> dict[str, float]:
    """What a budget limits: `seconds` or `flops`; nothing without one.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return {}
    if (match := _TIME.fullmatch(text.strip())) is not None:
        return {"seconds": float(match["number"]) * _SECONDS[match["unit"]]}
    try:
        flops = float(text)
    except ValueError:
        flops = 0.0
    if not 0 < flops < float("inf"):
        raise UserError(
            f"--budget {text} is no budget: write 90s, 20m or 3h, or operations such as 5e13"
        )
    return {"flops": flops}
