"""The strongest edges of graph/edges.parquet."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from unweave.artifact.folder import Artifact
from unweave.artifact.layout import EDGES_TABLE
from unweave.report.facts import Described, Edge, End, Graph
from unweave.report.read.descriptions import read_words_of
from unweave.report.read.words import Words

SHOWN = 16
"""Edges shown of each kind."""
EACH = 2
"""Edges shown of any one end, so that a single loud feature does not fill the page."""
_LOOKED_AT = 4000


def read_graph(artifact: Artifact, words: Words) -> Graph | None:
    """The strongest interactions of each kind, or None where the artifact has no graph.

    Strength is |used|: what an edge delivers to its target,
    weight times the source's expected activation while the target fires.
    """
    if not (artifact.folder / EDGES_TABLE).is_file():
        return None
    table = artifact.edges()
    from_token = _starts(table["source"], "token/")
    to_logit = _starts(table["target"], "logit/")
    picks = [
        _strongest(table, mask)
        for mask in (~from_token & ~to_logit, from_token & ~to_logit, ~from_token & to_logit)
    ]
    features = {end for rows in picks for row in rows for end in row[:2] if "@" in end}
    said = read_words_of(artifact.folder, features)
    inner, inputs, outputs = (tuple(_edge(row, words, said) for row in rows) for rows in picks)
    return Graph(len(from_token), inner, inputs, outputs)


_Row = tuple[str, str, float, float]


def _starts(names: np.ndarray, prefix: str) -> np.ndarray:
    return np.fromiter((str(name).startswith(prefix) for name in names), bool, len(names))


def _strongest(table: Mapping[str, np.ndarray], mask: np.ndarray) -> list[_Row]:
    """Strongest first, at most `EACH` of any end."""
    strength = np.abs(table["used"])
    at = np.flatnonzero(mask & np.isfinite(strength) & np.isfinite(table["weight"]))
    at = at[np.argsort(-strength[at], kind="stable")[:_LOOKED_AT]]
    seen: Counter[str] = Counter()
    kept: list[_Row] = []
    for index in at:
        ends = (str(table["source"][index]), str(table["target"][index]))
        if len(kept) == SHOWN:
            break
        if all(seen[end] < EACH for end in ends):
            kept.append((*ends, float(table["weight"][index]), float(table["used"][index])))
            seen.update(ends)
    return kept


def _edge(row: _Row, words: Words, said: Mapping[str, Described]) -> Edge:
    source, target, weight, used = row
    start, end = (_end(name, words, said) for name in (source, target))
    return Edge(start, end, weight, used)


def _end(name: str, words: Words, said: Mapping[str, Described]) -> End:
    kind, _, number = name.partition("/")
    if kind in {"token", "logit"} and number.isdecimal():
        return End(name, words[int(number)], True)
    return End(name, said[name].text if name in said else "", False)
