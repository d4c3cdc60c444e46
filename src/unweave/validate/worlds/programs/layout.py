"""Where everything of a program goes: which component computes it, which directions hold it.

An operator is computed as early as the operators it reads allow: attention and MLP of a block take
turns, and attention reads what was there before the block. Every value of a categorical operator
has a direction of its own in the residual stream, every number one; direction 0 marks the start.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.validate.worlds.programs.language import (
    Aggregate,
    Domain,
    Indices,
    Map,
    Operator,
    Select,
    Share,
    Tokens,
    in_order,
)

EMBED, POSITIONS, LOGITS = "embed", "positions", "logits"
"""Components outside the blocks."""


class Edge(NamedTuple):
    """One component reading what another wrote."""

    source: str
    """`embed`, `positions`, `blocks.0.head.1` or `blocks.0.mlp`."""
    target: str
    """`blocks.0.head.1.q` (or `.k`, `.v`), `blocks.0.mlp` or `logits`."""


def head_name(layer: int, head: int) -> str:
    """What a head is called."""
    return f"blocks.{layer}.head.{head}"


def mlp_name(layer: int) -> str:
    """What a block's MLP is called."""
    return f"blocks.{layer}.mlp"


@dataclass(frozen=True)
class Variable:
    """One operator in the residual stream."""

    name: str
    """The operator's name, with a number behind it where two have the same."""
    operator: Operator
    """What it holds."""
    start: int
    """Its first direction."""
    component: str
    """Who writes it."""
    slot: int
    """When: -1 for embeddings, 2 l for attention of block l, 2 l + 1 for its MLP."""
    used: bool
    """Whether the program's output depends on it; the others are there to mislead."""

    @property
    def values(self) -> Domain | None:
        """What it can hold, one value a direction; None for a number."""
        return self.operator.domain

    @property
    def size(self) -> int:
        """How many directions it has."""
        return 1 if self.values is None else len(self.values)

    @property
    def span(self) -> slice:
        """Its directions among all."""
        return slice(self.start, self.start + self.size)

    @property
    def labels(self) -> list[str]:
        """What each of its directions says."""
        return [self.name] if self.values is None else [f"{self.name}:{v}" for v in self.values]

    def at(self, site: str) -> bool:
        """Whether the residual stream holds it at a site (`embed` or a block's `resid_*`)."""
        if site == "embed":
            return self.component == EMBED
        if site == "final":
            return True
        layer, stream = int(site.split(".")[1]), site.split(".")[2]
        return self.slot < 2 * layer + ("resid_pre", "resid_mid", "resid_post").index(stream)


@dataclass(frozen=True)
class Layout:
    """All variables, in the order of computation."""

    variables: dict[Operator, Variable]
    """By operator."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads of the block that has most."""

    @property
    def size(self) -> int:
        """How many directions there are, the start's among them."""
        return 1 + sum(v.size for v in self.variables.values())

    def read(self, operator: Operator) -> Float[Tensor, "values directions"]:
        """What reads each value of a variable, giving nothing at the start of a row.

        What attention wrote at the start is known (nothing selected), and is subtracted.
        """
        variable = self.variables[operator]
        rows = torch.zeros(variable.size, self.size)
        rows[:, variable.span] = torch.eye(variable.size)
        if isinstance(operator, Share):
            rows[0, 0] = -1.0
        elif isinstance(operator, Aggregate) and operator.domain is not None:
            rows[operator.domain.index(None), 0] = -1.0
        return rows


def lay_out(tokens: Tokens, indices: Indices, output: Operator, *others: Operator) -> Layout:
    """Give every operator its component and its directions."""
    wanted = set(in_order(output))
    variables: dict[Operator, Variable] = {}
    heads: dict[int, int] = defaultdict(int)
    names: dict[str, int] = defaultdict(int)
    start = 1
    for operator in in_order(tokens, indices, output, *others):
        slot = _slot(operator, variables)
        names[operator.name] += 1
        again = f"_{names[operator.name]}" if names[operator.name] > 1 else ""
        name = operator.name + again
        component = _component(operator, slot, heads)
        variable = Variable(name, operator, start, component, slot, operator in wanted)
        variables[operator] = variable
        start += variable.size
    last = max(v.slot for v in variables.values())
    return Layout(variables, max(1, last // 2 + 1), max(1, *heads.values(), 0))


def _slot(operator: Operator, placed: dict[Operator, Variable]) -> int:
    if isinstance(operator, Tokens | Indices):
        return -1
    after = max(placed[one].slot for one in operator.inputs) + 1
    attends = isinstance(operator, Aggregate | Share)
    return after + (after % 2 if attends else 1 - after % 2)


def _component(operator: Operator, slot: int, heads: dict[int, int]) -> str:
    match operator:
        case Tokens():
            return EMBED
        case Indices():
            return POSITIONS
        case Aggregate() | Share():
            heads[slot // 2] += 1
            return head_name(slot // 2, heads[slot // 2] - 1)
    return mlp_name(slot // 2)


def true_edges(layout: Layout, output: Operator) -> frozenset[Edge]:
    """The edges by which the program's information flows.

    An edge that carries only what never changes (where a row starts, or an argument on which a
    function does not depend) is none. Edges of variables that are there to mislead are none.
    """
    edges = {Edge(layout.variables[output].component, LOGITS)}
    for variable in layout.variables.values():
        if variable.used:
            edges |= {
                Edge(layout.variables[read].component, target)
                for read, target in _reads(variable.operator, variable.component)
            }
    return frozenset(edges)


def _reads(operator: Operator, component: str) -> Iterable[tuple[Operator, str]]:
    match operator:
        case Map():
            for place, one in enumerate(operator.of):
                if depends(operator.function, [o.domain or () for o in operator.of], place):
                    yield one, component
        case Aggregate():
            yield from _select_reads(operator.select, component)
            yield operator.values, f"{component}.v"
        case Share():
            yield from _select_reads(operator.select, component)
        case _:
            for one in operator.inputs:
                yield one, component


def _select_reads(select: Select, component: str) -> Iterable[tuple[Operator, str]]:
    domains = [select.keys.domain or (), select.queries.domain or ()]
    for place, (one, role) in enumerate(((select.keys, "k"), (select.queries, "q"))):
        if depends(select.predicate, domains, place):
            yield one, f"{component}.{role}"
    if select.latest:
        yield select.latest, f"{component}.k"


def depends(function: Callable[..., object], domains: Sequence[Domain], place: int) -> bool:
    """Whether a function's value ever changes with its argument at `place`."""
    others = [domain for i, domain in enumerate(domains) if i != place]
    for rest in product(*others):
        given = [(*rest[:place], v, *rest[place:]) for v in domains[place]]
        if len({function(*one) for one in given}) > 1:
            return True
    return False
