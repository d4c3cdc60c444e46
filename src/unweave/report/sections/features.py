"""The gallery of features, and how well descriptions do on the whole."""

from collections.abc import Sequence
from statistics import median

from unweave.artifact.scores import Interval, Scores
from unweave.report.draw.histogram import activations, against_control
from unweave.report.facts import Described, Example, Feature, Gallery, Piece
from unweave.report.html import Child, Markup, element
from unweave.report.numbers import interval, percent, plain, short, signed
from unweave.report.sections.frame import absent, chart, section, swatch, table, token, worded

DESCRIPTION_LIMIT = 300
"""Characters shown of a description."""
_ORDERS = (
    ("part", "part"),
    ("best", "best description"),
    ("worst", "worst description"),
    ("rare", "rarest"),
    ("often", "most frequent"),
    ("strong", "strongest"),
)


def features(gallery: Gallery | None, scores: Scores) -> Markup:
    """The distribution of scores, the tools, the features."""
    title = "What the features mean"
    if gallery is None or not gallery.features:
        words = "This artifact holds no tables of features."
        return section("features", title, "What each feature fires on.", absent(words))
    lead = (
        f"{len(gallery.features)} features. Not the prettiest: in each part they are spread "
        "evenly over the ranks of their descriptions' scores, so bad descriptions show too. "
        "Shade is activation; hover a token for its value."
    )
    return section(
        "features",
        title,
        lead,
        _scores(gallery, scores),
        _tools(gallery.features),
        element("div", [_feature(f, index) for index, f in enumerate(gallery.features)], id="list"),
        element("p", "No feature matches.", class_="absent", id="none", hidden=True),
    )


def _scores(gallery: Gallery, scores: Scores) -> Markup:
    """How well the words do on the whole, beside words given to the wrong features."""
    if not gallery.aurocs:
        return absent("The descriptions were not scored.")
    semantic = scores.semantic
    shuffled = semantic.shuffled.auroc_mean.value
    drawing = against_control(gallery.aurocs, gallery.controls, mean=shuffled)
    control = "shuffled descriptions" + ("" if gallery.controls else " (mean)")
    key = [swatch("amber bar", "descriptions"), swatch("outline bar", control)]
    rows: list[list[Child]] = [
        [name, _with_interval(mine), _with_interval(control)]
        for name, mine, control in (
            ("AUROC, mean", semantic.auroc_mean, semantic.shuffled.auroc_mean),
            ("correlation, mean", semantic.correlation_mean, semantic.shuffled.correlation_mean),
            (
                "bits of firing foretold, share",
                scores.four_numbers.semantic_accuracy,
                semantic.more.get("bits_fraction_shuffled"),
            ),
        )
    ]
    words = (
        f"{semantic.described:,} descriptions, scored on held-out text. Shuffled: each given to "
        f"another feature of the same part. Chance is an AUROC of 0.5 and a correlation of 0; "
        f"a description that misleads costs bits, so its share is below 0. "
        f"Median AUROC {plain(median(gallery.aurocs), 2)}."
    )
    numbers = element(
        "div",
        table(["", "descriptions", "shuffled"], rows, class_="four"),
        element("p", words, class_="note"),
    )
    return element("div", chart(drawing, None, key), numbers, class_="pair")


def _with_interval(measured: Interval | None) -> list[Child]:
    if measured is None:
        return ["–"]
    spread = interval(measured, 3)
    return [element("b", plain(measured.value)), element("small", spread) if spread else None]


def _tools(shown: Sequence[Feature]) -> Markup:
    """Search, filter and order; hidden where no script runs."""
    parts = list(dict.fromkeys(feature.part for feature in shown))
    choices = [element("option", "all parts", value="")]
    choices += [element("option", part, value=part) for part in parts]
    orders = [element("option", words, value=name) for name, words in _ORDERS]
    return element(
        "div",
        element("input", type="search", id="find", placeholder="find a word", aria_label="find"),
        element("label", "in ", element("select", choices, id="part")),
        element("label", "by ", element("select", orders, id="order")),
        element("output", f"{len(shown)} features", id="count"),
        id="tools",
        hidden=True,
    )


def _feature(feature: Feature, index: int) -> Markup:
    described = feature.described
    score = described.auroc if described and described.auroc is not None else -1.0
    words = worded(described.text, DESCRIPTION_LIMIT) if described else ["not described"]
    return element(
        "article",
        element(
            "div",
            element("h3", words, class_=None if described else "absent", dir="auto"),
            element("code", feature.id, class_="id"),
            class_="title",
        ),
        element(
            "div",
            element("div", _examples(feature.examples), class_="examples"),
            element("aside", _numbers(feature, described), _logits(feature)),
            class_="body",
        ),
        class_="feature",
        data_part=feature.part,
        data_index=index,
        data_score=f"{score:.4f}",
        data_often=f"{feature.frequency:.6g}",
        data_strong=f"{feature.greatest:.6g}",
    )


def _numbers(feature: Feature, described: Described | None) -> list[Child]:
    facts: list[tuple[str, str]] = [
        ("fires on", percent(feature.frequency)),
        ("greatest", short(feature.greatest)),
    ]
    if described is not None:
        facts += [
            ("AUROC", plain(described.auroc, 2)),
            ("correlation", plain(described.correlation, 2)),
            ("length", f"{plain(described.bits, 0)} bits"),
        ]
    listed = [element("div", element("dt", name), element("dd", value)) for name, value in facts]
    return [element("dl", listed), activations(feature.histogram, feature.edges)]


def _logits(feature: Feature) -> Markup | None:
    lines = [
        element("p", element("small", words), [_logit(piece, effect) for piece, effect in tokens])
        for words, tokens in (("raises", feature.promoted), ("lowers", feature.suppressed))
        if tokens
    ]
    return element("div", lines, class_="logits") if lines else None


def _logit(piece: str, effect: float) -> Markup:
    return element(
        "span", token(piece, limit=24), " ", title=f"{signed(effect)} logits", class_="logit"
    )


def _examples(examples: Sequence[Example]) -> list[Markup]:
    if not examples:
        return [absent("It never fired on the text for explaining.")]
    drawn = []
    for example in examples:
        where = "top" if example.band == 0 else f"q{example.band}"
        drawn.append(
            element(
                "p",
                element("span", short(example.value), class_="value", title=_band(example.band)),
                element("span", [_piece(piece) for piece in example.pieces], class_="line"),
                class_=where,
                dir="auto",
            )
        )
    return drawn


def _band(band: int) -> str:
    return "among the strongest" if band == 0 else f"quantile band {band} below the strongest"


def _piece(piece: Piece) -> Child:
    if piece.level == 0 and not piece.peak:
        return shown(piece.text)
    kind = f"a{piece.level}" + (" peak" if piece.peak else "")
    return element("bdi", shown(piece.text), class_=kind, title=short(piece.value))


def shown(words: str) -> str:
    """Running text: line breaks and tabs become signs, blanks stay blanks."""
    return words.replace("\r", "␍").replace("\n", "⏎ ").replace("\t", "⇥")
