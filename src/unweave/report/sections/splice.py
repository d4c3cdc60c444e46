"""The splice modes: a number without its mode means nothing."""

from unweave.artifact.scores import Fidelity, Interval, Scores
from unweave.report.html import Child, Markup, element
from unweave.report.numbers import interval, percent, plain, signed
from unweave.report.sections.frame import section, table

_MODES = {
    "clean": "Everything replaced, each part reading what the original network would have given "
    "it. The parts' own errors, not yet compounded.",
    "single": "One part replaced, everything else original; the mean over parts. The kindest mode.",
    "propagated": "Everything replaced, each part reading what the replaced parts before it "
    "wrote. The network really runs in features: the honest mode.",
}


def splices(scores: Scores) -> Markup:
    """One row a mode."""
    lead = "What replacing costs depends on what the replaced parts are given to read."
    lines = [_line(mode, getattr(scores.splice, mode)) for mode in _MODES]
    heads = ["", "loss rise (nats)", "KL (nats)", "top-1 agreement"]
    return section("splice", "Splice modes", lead, table(heads, lines, class_="four"))


def _line(mode: str, fidelity: Fidelity) -> list[Child]:
    return [
        [element("b", mode), element("small", _MODES[mode])],
        _cell(signed(fidelity.ce_increase.value), interval(fidelity.ce_increase)),
        _cell(plain(fidelity.kl.value), interval(fidelity.kl)),
        _cell(percent(fidelity.top1_agreement.value), _percents(fidelity.top1_agreement)),
    ]


def _cell(shown: str, spread: str) -> list[Child]:
    return [element("b", shown), element("small", spread) if spread else None]


def _percents(measured: Interval) -> str:
    if measured.low is None or measured.high is None:
        return ""
    return f"{percent(measured.low)} to {percent(measured.high)}"
