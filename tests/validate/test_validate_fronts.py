"""Fronts and hypervolumes against hand-computed ones."""

import itertools
import math
import random

import pytest

from unweave.artifact.measurements import Measurement, Measurements
from unweave.artifact.records import SubjectRecord, TextRecord
from unweave.artifact.scores import Number
from unweave.errors import UserError
from unweave.validate.fronts import (
    Point,
    Reference,
    beaten_by,
    beats,
    bits_per_nat,
    front_of,
    fronts_of,
    hypervolume,
    hypervolume_interval,
    side_by_side,
)

NAN, INF = float("nan"), float("inf")
CORNER = Reference(length=16.0, loss=4.0)


def names(points: list[Point]) -> str:
    return "".join(point.name for point in points)


def test_the_front_holds_what_nothing_beats_and_not_what_is_beaten() -> None:
    points = [
        Point("a", 1, 3), Point("b", 2, 2), Point("c", 3, 2), Point("d", 2, 3), Point("e", 8, 0),
        Point("f", 9, 0.5),
    ]  # fmt: skip
    assert names(front_of(points)) == "abe"
    assert beaten_by(points)["f"] == ["e"]
    assert beaten_by(points)["c"] == ["b"]
    assert beaten_by(points)["d"] == ["a", "b"]
    assert beaten_by(points)["a"] == []


def test_of_equal_points_neither_beats_the_other_and_one_stands_on_the_front() -> None:
    twins = [Point("a", 2, 2), Point("b", 2, 2)]
    assert names(front_of(twins)) == "a"
    assert not beats(*twins)
    assert not beats(*reversed(twins))


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_no_number_is_never_on_the_front(bad: float) -> None:
    good = Point("good", 5, 5)
    for point in (Point("bad", bad, 1), Point("bad", 1, bad)):
        assert names(front_of([point, good])) == "good"
        assert beats(good, point)
        assert not beats(point, good)
        assert hypervolume([point], CORNER) == 0.0


def test_a_linear_hypervolume_is_the_area_of_the_staircase() -> None:
    steps = [Point("a", 4, 3), Point("b", 8, 1)]
    # From 4 to 8 one of loss is won, from 8 to 16 three: 4 + 24 of 64.
    assert hypervolume(steps, CORNER, "linear") == pytest.approx(28 / 64)
    assert hypervolume([*steps, Point("beaten", 9, 2)], CORNER, "linear") == pytest.approx(28 / 64)


def test_a_logarithmic_hypervolume_counts_halvings() -> None:
    steps = [Point("a", 4, 3), Point("b", 8, 1)]
    # log2: from 2 to 3 one is won, from 3 to 4 three: 4 of 4 x 4.
    assert hypervolume(steps, CORNER) == pytest.approx(4 / 16)
    assert hypervolume([Point("all", 1, 0)], CORNER) == 1.0
    assert hypervolume([Point("shorter than one bit", 0.1, 0)], CORNER) == 1.0


def test_the_words_axis_begins_where_descriptions_are_short() -> None:
    corner = CORNER._replace(shortest=1 / 64)  # ten doublings, of which half a bit wins five
    assert hypervolume([Point("a", 0.5, 0)], corner) == pytest.approx(5 / 10)


def test_what_lies_beyond_the_reference_conquers_nothing() -> None:
    beyond = [Point("long", 16, 0), Point("wrong", 1, 4), Point("both", 20, 5)]
    assert hypervolume(beyond, CORNER) == 0.0
    assert hypervolume([Point("all", 1, 0)], Reference(1.0, 4.0)) == 0.0
    assert hypervolume([Point("all", 1, 0)], Reference(16.0, 0.0)) == 0.0


@pytest.mark.parametrize("axis", ["log", "linear"])
def test_the_hypervolume_is_that_of_counting_cells(axis: str) -> None:
    draw = random.Random(5)
    side = 64
    corner = Reference(2.0**6 if axis == "log" else float(side), float(side))
    for _ in range(20):
        grid = [(draw.randrange(side), draw.randrange(side)) for _ in range(6)]
        along = [2 ** (x * 6 / side) if axis == "log" else x for x, _ in grid]
        points = [
            Point(str(i), a, y) for i, (a, (_, y)) in enumerate(zip(along, grid, strict=True))
        ]
        covered = sum(
            any(x <= cell_x and y <= cell_y for x, y in grid)
            for cell_x, cell_y in itertools.product(range(side), repeat=2)
        )
        assert hypervolume(points, corner, axis) == pytest.approx(covered / side**2)


def test_bits_per_nat_counts_what_is_won_back_from_the_reference() -> None:
    won = Point("a", 8, CORNER.loss - 1 / math.log(2))  # one nat
    assert bits_per_nat(won, CORNER) == pytest.approx(8)
    assert bits_per_nat(Point("nothing", 8, CORNER.loss), CORNER) is None


def number(value: float, spread: float = 0.0) -> Number:
    return Number(value=value, low=value - spread, high=value + spread, unit="bits/token")


def method(name: str, *four: float, kind: str = "dictionary", spread: float = 0.0) -> Measurement:
    length, loss, words, told = four
    return Measurement(
        name=name,
        kind=kind,
        math_loss=number(loss, spread),
        math_length=number(length),
        semantic_loss=number(told),
        semantic_share=Number(value=0.5, unit="share"),
        semantic_length=number(words),
        controls={"semantic_share_shuffled": Number(value=0.0, unit="share")},
    )


CONTROL = method("shuffled-subject", 3, 3.9, 3, 3.9, kind="control")


def measured(*methods: Measurement, **changes: object) -> Measurements:
    sizes = dict.fromkeys(
        ("n_layers", "d_model", "d_mlp", "n_heads", "n_kv_heads", "d_head", "vocab_size"), 1
    )
    subject = SubjectRecord(name="s", fingerprint="f", family="x", parameters=1, **sizes)
    text = TextRecord(name="t", sha256="0", tokens=10, heldout_tokens=5, context=5)
    fields = {
        "subject": subject, "text": text, "place": "blocks.0.resid_post", "mode": "propagated",
        "amortised_over": 10, "code": "0", "seed": 0, "methods": [*methods, CONTROL],
    }  # fmt: skip
    return Measurements(**fields | changes)


def test_the_interval_of_a_hypervolume_is_that_of_all_ends() -> None:
    found = hypervolume_interval(
        [method("a", 4, 3, 4, 3, spread=0.5)], "mathematical", CORNER, "linear"
    )
    assert found.value == pytest.approx(12 / 64)
    assert (found.low, found.high) == (pytest.approx(6 / 64), pytest.approx(18 / 64))


def test_both_fronts_are_found_and_controls_stand_apart() -> None:
    best, worse = method("best", 4, 1, 2, 3), method("worse", 5, 2, 1, 2, kind="baseline")
    mathematical, semantic = fronts_of(measured(best, worse), CORNER).values()
    assert mathematical.front == ["best"]
    assert semantic.front == ["worse"]
    assert mathematical.beaten_by == {"best": [], "worse": ["best"]}
    assert mathematical.unbeaten_controls == ["shuffled-subject"]
    assert semantic.unbeaten_controls == []
    assert mathematical.hypervolume.value == pytest.approx(hypervolume([Point("", 4, 1)], CORNER))


def test_a_control_that_nothing_beats_adds_nothing_to_the_hypervolume() -> None:
    poor = method("poor", 8, 3, 8, 3)
    winner = method("too good to be true", 1, 0, 1, 0, kind="control")
    found = fronts_of(measured(poor, winner), CORNER)["mathematical"]
    assert found.front == ["poor"]
    assert found.hypervolume.value < 0.1
    assert found.unbeaten_controls == ["too good to be true", "shuffled-subject"]


def test_measurements_of_two_places_or_texts_stand_on_no_common_plot() -> None:
    one = measured(method("a", 1, 1, 1, 1))
    both = side_by_side([one, measured(method("b", 2, 2, 2, 2))])
    assert [m.name for m in both.methods] == ["a", "shuffled-subject", "b"]
    with pytest.raises(UserError, match="differ in their place"):
        side_by_side([one, measured(place="everything")])
    with pytest.raises(UserError, match="a method a with other numbers"):
        side_by_side([one, measured(method("a", 2, 1, 1, 1))])
    with pytest.raises(UserError, match="No measurements"):
        side_by_side([])
