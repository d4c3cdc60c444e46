"""Pareto fronts of the four numbers: accuracy against length, in bits per token both.

Every method is a point (length, loss) of the mathematics and another of the words. One beats
another when it is no longer and no less accurate, and better in one. How much a set of methods
has conquered is one number, the hypervolume: the share of a rectangle that it beats,

    from the shortest to the reference's length (logarithmic, or linear from 0)
    from no loss to the reference's loss (linear)

The reference is the dense vector's length and the loss of mean ablation, for both fronts: who needs
more words than the raw vector needs bits, or explains less than saying nothing, has conquered
nothing. The logarithmic axis begins at one bit a token for the mathematics and, as descriptions are
amortised, at 1/64 bit for the words. Controls are kept out of fronts and hypervolumes; one that no
method beats is reported.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from unweave.artifact.measurements import Measurement, Measurements
from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.errors import UserError
from unweave.training.pareto import unbeaten

Which = Literal["mathematical", "semantic"]
WHICH: tuple[Which, ...] = ("mathematical", "semantic")
Axis = Literal["log", "linear"]
SHORTEST: dict[Which, float] = {"mathematical": 1.0, "semantic": 1 / 64}
"""Bits per token at which the logarithmic axis of lengths begins."""


class Point(NamedTuple):
    """One method on one front, bits per token both; lower is better."""

    name: str
    """The method."""
    length: float
    """How long it is."""
    loss: float
    """How inaccurate it is."""


class Reference(NamedTuple):
    """The corner that hypervolumes are measured from."""

    length: float
    """Of the dense vector."""
    loss: float
    """Of mean ablation."""
    shortest: float = 1.0
    """Where a logarithmic axis of lengths begins."""


def points_of(methods: Iterable[Measurement], which: Which) -> list[Point]:
    """Where methods lie on one of the fronts."""
    return [Point(m.name, *(number.value for number in pair(m, which))) for m in methods]


def pair(method: Measurement, which: Which) -> tuple[Interval, Interval]:
    """A method's length and loss, with their intervals."""
    if which == "mathematical":
        return method.math_length, method.math_loss
    return method.semantic_length, method.semantic_loss


def front_of(points: Iterable[Point]) -> list[Point]:
    """Points that nothing beats, the shortest first; of equal ones the first stands for all."""
    return unbeaten(points, lambda point: (point.length, point.loss))


def beats(one: Point, other: Point) -> bool:
    """Whether `one` is as good as `other` in both and better in one.

    >>> beats(Point("a", 1.0, 2.0), Point("b", 1.0, 2.0))
    False
    """
    if not all(math.isfinite(number) for number in one[1:]):
        return False
    if not all(math.isfinite(number) for number in other[1:]):
        return True
    no_worse = one.length <= other.length and one.loss <= other.loss
    return no_worse and (one.length, one.loss) != (other.length, other.loss)


def beaten_by(points: Sequence[Point]) -> dict[str, list[str]]:
    """For every point the names of those that beat it."""
    return {point.name: [p.name for p in points if beats(p, point)] for point in points}


def hypervolume(points: Iterable[Point], reference: Reference, axis: Axis = "log") -> float:
    """Share of the reference's rectangle that the points beat, exactly; 0 where it has no area.

    >>> hypervolume([Point("half", 2.0, 0.5)], Reference(4.0, 1.0))
    0.25
    """
    end = _along(reference.length, reference, axis)
    area = end * reference.loss
    if not area > 0:
        return 0.0
    front = [p for p in front_of(points) if p.length < reference.length and p.loss < reference.loss]
    places = [_along(point.length, reference, axis) for point in front]
    covered = sum(
        (after - here) * (reference.loss - max(point.loss, 0.0))
        for point, (here, after) in zip(front, pairwise([*places, end]), strict=True)
    )
    return covered / area


def _along(length: float, reference: Reference, axis: Axis) -> float:
    if axis == "linear":
        return max(length, 0.0)
    return math.log2(max(length, reference.shortest) / reference.shortest)


def hypervolume_interval(
    methods: Sequence[Measurement], which: Which, reference: Reference, axis: Axis = "log"
) -> Interval:
    """The hypervolume, with that of all upper ends and that of all lower ends around it.

    No bootstrap of its own: it is wider than one, because not all methods are unlucky at once.
    """
    value, low, high = (
        hypervolume(_at_ends(methods, which, end), reference, axis)
        for end in ("value", "high", "low")
    )
    return Interval(value=value, low=min(low, value), high=max(high, value))


def _at_ends(methods: Sequence[Measurement], which: Which, end: str) -> list[Point]:
    points = []
    for method in methods:
        numbers = pair(method, which)
        ends = [getattr(number, end) for number in numbers]
        chosen = [n.value if e is None else e for n, e in zip(numbers, ends, strict=True)]
        points.append(Point(method.name, *chosen))
    return points


def bits_per_nat(point: Point, reference: Reference) -> float | None:
    """Bits of length for every nat of accuracy won back from mean ablation (MDL-SAE's exchange).

    None where nothing is won back.
    """
    won = (reference.loss - point.loss) * math.log(2)
    return point.length / won if won > 0 else None


def side_by_side(several: Sequence[Measurements]) -> Measurements:
    """Measurements of one place, text and splice mode as one table; a method met twice stands once.

    Raises:
        UserError: nothing given, measurements that no plot may hold together, or two methods of
            one name.
    """
    if not several:
        raise UserError("No measurements to compare: name a measurements.json or a dictionary")
    first, methods = several[0], dict[str, Measurement]()
    for found in several:
        for what in ("subject", "text", "place", "mode", "amortised_over"):
            if getattr(found, what) != getattr(first, what):
                raise UserError(
                    f"These measurements differ in their {what.replace('_', ' ')} and cannot "
                    "stand on one plot: measure all methods together with unweave pareto"
                )
        for method in found.methods:
            if methods.setdefault(method.name, method) != method:
                raise UserError(
                    f"Two of the measurements have a method {method.name} with other numbers: "
                    "rename one of them"
                )
    return first.model_copy(update={"methods": list(methods.values())})


class Front(Record):
    """One front with all that is said about it."""

    reference_length: float
    """The corner of the hypervolumes: the dense vector's length, bits per token."""
    reference_loss: float
    """The loss of mean ablation, bits per token."""
    shortest: float
    """Where the logarithmic axis of lengths begins, bits per token."""
    front: list[str]
    """Methods that nothing beats, the shortest first; controls are left out."""
    beaten_by: dict[str, list[str]]
    """For every method that is no control those that beat it."""
    bits_per_nat: dict[str, float | None]
    """Length paid for every nat won back from mean ablation; null where nothing is won back."""
    hypervolume: Interval
    """Lengths on a logarithmic axis that begins at `shortest`."""
    hypervolume_linear: Interval
    """Lengths on a linear axis that begins at none."""
    unbeaten_controls: list[str]
    """Controls that no method beats: they must be explained before the front is believed."""


def fronts_of(measured: Measurements, reference: Reference) -> dict[Which, Front]:
    """Both fronts."""
    return {
        which: _front(measured.methods, which, reference._replace(shortest=SHORTEST[which]))
        for which in WHICH
    }


def _front(methods: Sequence[Measurement], which: Which, reference: Reference) -> Front:
    judged = [method for method in methods if method.kind != "control"]
    points = points_of(judged, which)
    controls = points_of((m for m in methods if m.kind == "control"), which)
    return Front(
        reference_length=reference.length,
        reference_loss=reference.loss,
        shortest=reference.shortest,
        front=[point.name for point in front_of(points)],
        beaten_by=beaten_by(points),
        bits_per_nat={point.name: bits_per_nat(point, reference) for point in points},
        hypervolume=hypervolume_interval(judged, which, reference),
        hypervolume_linear=hypervolume_interval(judged, which, reference, "linear"),
        unbeaten_controls=[c.name for c in controls if not any(beats(p, c) for p in points)],
    )
