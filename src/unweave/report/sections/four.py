"""The four numbers: accuracy and length, of the mathematics and of the words."""

from collections.abc import Mapping, Sequence

from unweave.artifact.scores import Control, FourNumbers, Interval, Number, Scores
from unweave.report.draw.pareto import Point, sketch
from unweave.report.html import Child, Markup, element
from unweave.report.numbers import count, interval, percent, plain, short, signed
from unweave.report.sections.frame import absent, chart, section, swatch, table

_NAMES = {"neurons": "Neurons", "pca": "PCA", "random": "Random directions"}
_WORDS = (
    (
        "math_accuracy",
        "Mathematical accuracy",
        "Rise of the next-token loss with everything replaced. Lower is better.",
    ),
    (
        "math_length_bits",
        "Mathematical length",
        "To say which latents fire and how strongly, with the dictionary itself spread over "
        "{tokens} training tokens. Lower is better.",
    ),
    (
        "semantic_accuracy",
        "Semantic accuracy",
        "How much of what fires, on text nobody explained from, the descriptions foretell. "
        "Higher is better.",
    ),
    (
        "semantic_length_bits",
        "Semantic length",
        "To say the descriptions, spread over the same tokens. Lower is better.",
    ),
)


def four(scores: Scores) -> Markup:
    """The table beside its baselines, the controls, and the sketch."""
    lead = (
        "A decomposition is good when it is true and short, in its mathematics and in its words. "
        "Four numbers on held-out text with 95% intervals, beside what other ways to take the "
        "same network apart reach with as many active units."
    )
    methods: dict[str, FourNumbers] = {"This artifact": scores.four_numbers}
    methods |= {_NAMES.get(name, name): one for name, one in scores.baselines.items()}
    notes = [
        element("p", element("b", f"{_NAMES.get(name, name)}: "), one.note, class_="note")
        for name, one in scores.baselines.items()
        if one.note
    ]
    pair = element("div", _sketch(methods, scores), _controls(scores.controls), class_="pair")
    return section("numbers", "The four numbers", lead, _table(methods, scores.tokens), notes, pair)


def _table(methods: Mapping[str, FourNumbers], tokens: int) -> Markup:
    lines: list[list[Child]] = []
    for key, name, words in _WORDS:
        numbers: list[Number] = [getattr(one, key) for one in methods.values()]
        title = element("b", name, element("i", numbers[0].unit, class_="unit"))
        lines.append(
            [
                [title, element("small", words.replace("{tokens}", count(tokens)))],
                *[_cell(key, one) for one in numbers],
            ]
        )
    return table(["", *methods], lines, class_="four")


def _cell(key: str, number: Number) -> list[Child]:
    ends = [end for end in (number.low, number.high) if end is not None and end != number.value]
    if key == "math_accuracy":
        shown, spread = signed(number.value), interval(number)
    elif key == "semantic_accuracy":
        shown = percent(number.value) if "share" in number.unit else plain(number.value)
        show = percent if "share" in number.unit else plain
        spread = " to ".join(show(end) for end in ends)
    else:
        shown, spread = short(number.value), " to ".join(short(end) for end in ends)
    return [element("b", shown), element("small", spread) if ends and spread else None]


def _sketch(methods: Mapping[str, FourNumbers], scores: Scores) -> Markup:
    points = [
        Point(name, one.math_length_bits, one.math_accuracy, index == 0)
        for index, (name, one) in enumerate(methods.items())
        if one.math_length_bits.value > 0
    ]
    if not points:
        return absent("No length was measured, so there is nothing to draw.")
    mean = scores.controls["mean_ablation"].ce_increase.value
    drawing = sketch(points, ceiling=("mean ablation", mean), axis="Loss rise (nats per token)")
    key = [swatch("amber", "this artifact"), swatch("hollow", "baselines")]
    words = f"Accuracy against length: low and left is better. Mean ablation costs {signed(mean)}."
    return chart(drawing, words, key)


def _controls(controls: Mapping[str, Control]) -> Markup:
    lines: Sequence[Sequence[Child]] = [
        [
            [name.replace("_", " "), element("small", one.note) if one.note else None],
            signed(one.ce_increase.value),
            _share(one.top1_agreement),
        ]
        for name, one in controls.items()
    ]
    words = "What doing nothing clever costs: the scale on which to read every loss on this page."
    return element(
        "div",
        element("h3", "Controls"),
        table(["everything replaced", "loss rise", "top-1"], lines),
        element("p", words, class_="note"),
    )


def _share(measured: Interval | None) -> str:
    return percent(measured.value if measured else None)
