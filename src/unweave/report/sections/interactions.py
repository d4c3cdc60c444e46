"""The strongest edges of the interaction graph."""

from collections.abc import Sequence

from unweave.report.facts import Edge, End, Graph
from unweave.report.html import Child, Markup, element
from unweave.report.numbers import short, signed
from unweave.report.sections.frame import absent, section, table, token, worded


def interactions(graph: Graph | None) -> Markup:
    """Feature to feature, token to feature, feature to logit."""
    lead = (
        "Virtual weights, read from the parameters: how much one feature writes of what another "
        "reads. An edge delivers its weight times the source's mean activation while the target "
        "fires. Listed are those that deliver most, at most two of any one feature."
    )
    title = "How features interact"
    if graph is None:
        words = "This artifact holds no interaction graph."
        return section("interactions", title, lead, absent(words))
    count = element("p", f"{graph.total:,} edges in graph/edges.parquet.", class_="note")
    return section(
        "interactions",
        title,
        lead,
        _edges("Feature → feature", graph.inner),
        element(
            "div",
            element("div", _edges("Token → feature", graph.inputs, delivers=False)),
            element("div", _edges("Feature → logit", graph.outputs)),
            class_="pair",
        ),
        count,
    )


def _edges(title: str, edges: Sequence[Edge], *, delivers: bool = True) -> list[Markup]:
    """One kind of edge; of a token there is always one, so its weight is what it delivers."""
    if not edges:
        return [element("h3", title), absent("None were kept.")]
    most = max(abs(edge.weight) for edge in edges) or 1.0
    lines: list[list[Child]] = []
    for edge in edges:
        line: list[Child] = [_end(edge.source), _end(edge.target), _weight(edge.weight, most)]
        lines.append([*line, _sign(edge.used)] if delivers else line)
    heads = ["from", "to", "weight", *(["delivers"] if delivers else [])]
    return [element("h3", title), table(heads, lines, class_="edges")]


def _end(end: End) -> Markup:
    if end.token:
        return element("span", token(end.words, limit=20) if end.words else element("code", end.id))
    name = element("code", end.id)
    return element("span", name, element("small", worded(end.words, 100)) if end.words else None)


def _sign(number: float) -> str:
    return ("+" if number >= 0 else "") + short(number)


def _weight(weight: float, most: float) -> Markup:
    share = min(abs(weight) / most, 1.0)
    bar = element(
        "svg",
        element("rect", x=f"{40 * (1 - share):.1f}", y=0, width=f"{40 * share:.1f}", height=6),
        viewBox="0 0 40 6",
        class_="bar " + ("up" if weight >= 0 else "down"),
        aria_hidden="true",
    )
    return element("span", signed(weight), bar, class_="weight")
