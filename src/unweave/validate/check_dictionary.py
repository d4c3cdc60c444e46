"""The battery that every dictionary passes, ours or a plugin's.

    def test_my_dictionary() -> None:
        hold_dictionary(lambda: MyDictionary(seed=0), vectors)

Anything with `encode`, `decode` and `directions` is held to the promises of `Coder`; a trainable
`Dictionary` also to those of its spec (`validate.battery.trainable`).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.errors import UserError
from unweave.validate.battery.coder import CODER_CHECKS
from unweave.validate.battery.promises import Broken, NotPromised, Probe
from unweave.validate.battery.trainable import TRAINABLE_CHECKS, vectors_for

ROWS = 48
"""Vectors that a check looks at, unless it needs more."""


class Finding(NamedTuple):
    """What one check found."""

    check: str
    """Name of the check."""
    verdict: Literal["passed", "failed", "skipped"]
    """Skipped: this dictionary makes no such promise."""
    detail: str
    """What was not as promised, or why the check does not apply."""


def check_dictionary(make: Callable[[], Any], x: Tensor | None = None) -> list[Finding]:
    """Run every check; none is left out because another failed.

    `make` builds the dictionary, each time the same. `x` holds a few dozen raw vectors `[rows,
    d_in]` for it to read; for a `Dictionary` they are drawn when not given.

    Raises:
        UserError: no `x` for something whose width is not known.
    """
    checks = dict(CODER_CHECKS)
    made = make()
    if isinstance(made, Dictionary):
        checks |= TRAINABLE_CHECKS
        x = vectors_for(made, ROWS, seed=0) if x is None else x
    if x is None:
        raise UserError(
            f"The width that a {type(made).__name__} reads is not known: give check_dictionary"
            " some vectors as well"
        )
    probe = Probe(make, x)
    return [_verdict(name, check, probe) for name, check in checks.items()]


def hold_dictionary(make: Callable[[], Any], x: Tensor | None = None) -> None:
    """The same for tests.

    Raises:
        AssertionError: some check failed; the message lists all that did.
    """
    failed = [found for found in check_dictionary(make, x) if found.verdict == "failed"]
    if failed:
        lines = "\n".join(f"  {found.check}: {found.detail}" for found in failed)
        raise AssertionError(f"{len(failed)} promises of a dictionary are not kept:\n{lines}")


def _verdict(name: str, check: Callable[[Probe], None], probe: Probe) -> Finding:
    try:
        check(probe)
    except Broken as broken:
        return Finding(name, "failed", str(broken))
    except NotPromised as reason:
        return Finding(name, "skipped", str(reason))
    except Exception as error:  # a plugin may fail in any way, and the others are still to be run
        return Finding(name, "failed", f"raised {type(error).__name__}: {error}")
    return Finding(name, "passed", "")
