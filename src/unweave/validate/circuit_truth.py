"""Scores of edges or nodes beside the circuit that is known to be there.

Whatever scores edges can be held to a compiled program: here an edge is any hashable thing, and all
that counts is the order of the scores. Ties are neither won nor lost: they count half, and what
falls on the border of the first k counts by its share.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch

from unweave.errors import UserError
from unweave.validate.protocols.protocol import Refused
from unweave.validate.truth.states import auroc

Item = TypeVar("Item", bound=Hashable)


class AtK(NamedTuple):
    """The first k by score beside the truth; the expected value where the border cuts a tie."""

    k: int
    """How many are taken."""
    precision: float
    """Share of them that are true."""
    recall: float
    """Share of the true ones that are among them."""


class CircuitScore(NamedTuple):
    """How well an order of edges finds a known circuit."""

    auroc: float
    """Chance that a true edge scores higher than another edge, ties counting half."""
    precision: float
    """Share of true edges among as many as there are true ones; equals their recall."""
    chance: float
    """Share of true edges among all: what a random order has for precision."""
    edges: int
    """Edges scored."""
    true: int
    """Edges of the circuit."""


def measure_circuit(scores: Mapping[Item, float], truth: Collection[Item]) -> CircuitScore:
    """Hold scores of all candidate edges to the true ones.

    Raises:
        UserError: a true edge without a score, or a score that is no number.
        Refused: every candidate is true, or none is.
    """
    area = item_auroc(scores, truth)
    true = len(set(truth))
    return CircuitScore(
        auroc=area,
        precision=at_k(scores, truth, true).precision,
        chance=true / len(scores),
        edges=len(scores),
        true=true,
    )


def item_auroc(scores: Mapping[Item, float], truth: Collection[Item]) -> float:
    """Area under the ROC curve: the chance that a true one outscores another.

    Raises:
        UserError: a true one without a score, or a score that is no number.
        Refused: every candidate is true, or none is, so there is nothing to tell apart.
    """
    _checked(scores, truth)
    true = set(truth)
    if not true or len(true) == len(scores):
        missing = "true" if not true else "untrue"
        raise Refused(
            f"Of {len(scores)} scored candidates none is {missing}, so an order of them can be "
            "neither right nor wrong"
        )
    value = torch.tensor(list(scores.values()), dtype=torch.float64)
    there = torch.tensor([one in true for one in scores])
    return auroc(value[:, None], there[:, None]).item()


def at_k(scores: Mapping[Item, float], truth: Collection[Item], k: int) -> AtK:
    """Precision and recall of the k highest scores.

    Raises:
        UserError: as `item_auroc`, or a k that is not between 1 and the number of scores.
        Refused: nothing is true.
    """
    if not 1 <= k <= len(scores):
        raise UserError(f"The first {k} of {len(scores)} scores cannot be taken; take 1 or more")
    ties = _ties(scores, truth)
    true = sum(hits for hits, _ in ties)
    if not true:
        raise Refused("No candidate is true, so there is nothing to recall")
    found, left = Fraction(0), k
    for hits, size in ties:
        taken = min(left, size)
        found += Fraction(hits * taken, size)
        left -= taken
    return AtK(k, float(found / k), float(found / true))


def node_scores(edges: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """A component's score: the highest of the edges that leave it."""
    found: dict[str, float] = defaultdict(lambda: -math.inf)
    for (source, _), score in edges.items():
        found[source] = max(found[source], score)
    return dict(found)


def merged(edges: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """Edges into heads as a whole: the highest of those into its queries, keys and values."""
    found: dict[tuple[str, str], float] = {}
    for (source, target), score in edges.items():
        edge = source, merged_target(target)
        found[edge] = max(score, found.get(edge, -math.inf))
    return found


def merged_target(target: str) -> str:
    """`blocks.0.head.1` for its `.q`, `.k` or `.v`; any other target as it is."""
    return target[:-2] if target.endswith((".q", ".k", ".v")) else target


def _ties(scores: Mapping[Item, float], truth: Collection[Item]) -> Sequence[tuple[int, int]]:
    """Groups of equal scores, highest first: how many of each are true, and how many there are."""
    _checked(scores, truth)
    true = set(truth)
    ordered = sorted(((score, one in true) for one, score in scores.items()), reverse=True)
    groups = [[hit for _, hit in group] for _, group in groupby(ordered, key=lambda pair: pair[0])]
    return [(sum(group), len(group)) for group in groups]


def _checked(scores: Mapping[Item, float], truth: Collection[Item]) -> None:
    if strange := [one for one in set(truth) if one not in scores]:
        raise UserError(f"{strange[0]} is part of the true circuit and has no score")
    if broken := [one for one, score in scores.items() if math.isnan(score)]:
        raise UserError(f"The score of {broken[0]} is not a number")
