"""A small language of sequence operators, in which what a transformer does can be written down.

An operator gives one value for every place of a sequence. Categorical operators take values from a
finite domain; numerical ones give a number. Words come in through `Tokens` and `Indices`; `Map`,
`Bin` and `Combine` work place by place, `Aggregate` and `Share` gather over the places that a
`Select` selects. After RASP (Weiss, Goldberg & Yahav 2021) and Tracr (Lindner et al. 2023).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product

from unweave.errors import UserError

Value = str | int | float | bool | None
"""What a place can hold; None where nothing was selected."""
Domain = tuple[Value, ...]
"""The values that a categorical operator can take, in a fixed order."""
MOST_VALUES = 512
"""Largest domain: every value is a direction of its own in the compiled network."""


@dataclass(frozen=True, eq=False)
class Operator:
    """Something with a value at every place; two are the same only if they are one object."""

    name: str
    """What its variable is called."""

    @property
    def domain(self) -> Domain | None:
        """The values it can take, or None for a number."""
        raise UserError(f"{self.name} is no operator that the language knows")

    @property
    def inputs(self) -> "tuple[Operator, ...]":
        """The operators whose values it reads."""
        return ()


@dataclass(frozen=True, eq=False)
class Tokens(Operator):
    """The word at each place."""

    vocabulary: tuple[str, ...]

    @property
    def domain(self) -> Domain:
        """The vocabulary."""
        return self.vocabulary


@dataclass(frozen=True, eq=False)
class Indices(Operator):
    """The number of each place, from 0."""

    length: int
    """Places of the longest sequence."""

    @property
    def domain(self) -> Domain:
        """0 to `length` - 1."""
        return tuple(range(self.length))


@dataclass(frozen=True, eq=False)
class Map(Operator):
    """A function of one or two categorical values at the same place; `numerical` gives a number."""

    function: Callable[..., Value]
    of: tuple[Operator, ...]
    numerical: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.of) <= 2 or any(one.domain is None for one in self.of):
            raise UserError(f"The map {self.name} reads one or two categorical operators")
        object.__setattr__(self, "_domain", None if self.numerical else self._values())

    def _values(self) -> Domain:
        found = dict.fromkeys(self.function(*given) for given in self.given())
        return checked_domain(self.name, tuple(found))

    def given(self) -> list[Domain]:
        """Every combination of the values it can read."""
        return list(product(*(categories(one) for one in self.of)))

    @property
    def domain(self) -> Domain | None:
        """What the function gives on all that it can read, in the order of first appearance."""
        return self.__dict__["_domain"]

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """What it maps."""
        return self.of


@dataclass(frozen=True, eq=False)
class Combine(Operator):
    """A weighted sum of numbers at the same place."""

    of: tuple[Operator, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.of) != len(self.weights) or any(one.domain is not None for one in self.of):
            raise UserError(f"{self.name} combines numbers, each with a weight")

    @property
    def domain(self) -> None:
        """A number."""
        return None

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """What it sums."""
        return self.of


@dataclass(frozen=True, eq=False)
class Bin(Operator):
    """The label of the listed point that a number is nearest to."""

    of: Operator
    points: Mapping[float, Value]
    """Points to labels; two points may share a label."""

    def __post_init__(self) -> None:
        if self.of.domain is not None or len(self.points) < 2:
            raise UserError(f"{self.name} sorts a number to two points or more")
        ordered = dict(sorted(self.points.items()))
        object.__setattr__(self, "points", ordered)
        checked_domain(self.name, self.domain)

    @property
    def domain(self) -> Domain:
        """The labels, in the order of their points."""
        return tuple(dict.fromkeys(self.points.values()))

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """The number."""
        return (self.of,)


@dataclass(frozen=True, eq=False)
class Select:
    """For each place, the places whose key goes with its query; `latest` keeps only the last."""

    keys: Operator
    queries: Operator
    predicate: Callable[..., bool]
    """Told a key and a query."""
    latest: Indices | None = None
    """The numbers of the places, where only the last selected place shall be kept."""

    def __post_init__(self) -> None:
        if self.keys.domain is None or self.queries.domain is None:
            raise UserError("A selection compares categorical operators; bin a number first")

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """Keys, queries and, for the latest, the numbers of the places."""
        return (self.keys, self.queries, *([self.latest] if self.latest else []))

    def table(self) -> list[list[bool]]:
        """The predicate, a row a key and a column a query."""
        queries = categories(self.queries)
        return [[bool(self.predicate(k, q)) for q in queries] for k in categories(self.keys)]


@dataclass(frozen=True, eq=False)
class Aggregate(Operator):
    """What the selected places hold: the mean of numbers, or the one categorical value they share.

    Where nothing is selected: 0, or None.
    """

    select: Select
    values: Operator

    @property
    def domain(self) -> Domain | None:
        """The values gathered, and None."""
        gathered = self.values.domain
        return None if gathered is None else (*(v for v in gathered if v is not None), None)

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """What is selected by, and what is gathered."""
        return (*self.select.inputs, self.values)


@dataclass(frozen=True, eq=False)
class Share(Operator):
    """1 / (1 + number of selected places): what a uniform head leaves for the start of the row."""

    select: Select = field(kw_only=True)

    @property
    def domain(self) -> None:
        """A number."""
        return None

    @property
    def inputs(self) -> tuple[Operator, ...]:
        """What is selected by."""
        return self.select.inputs


def count(name: str, select: Select, most: int) -> Bin:
    """How many places are selected, 0 to `most` (RASP's selector width)."""
    share = Share(f"{name}_share", select=select)
    return Bin(name, share, {1 / (1 + n): n for n in range(most + 1)})


def categories(operator: Operator) -> Domain:
    """The domain of a categorical operator."""
    if operator.domain is None:
        raise UserError(f"{operator.name} is a number; bin it where categories are needed")
    return operator.domain


def checked_domain(name: str, domain: Domain) -> Domain:
    """The domain, unless it is too large to give every value a direction."""
    if len(domain) > MOST_VALUES:
        raise UserError(
            f"{name} can take {len(domain)} values and every one is a direction of the network; "
            f"use a smaller vocabulary or length so that there are at most {MOST_VALUES}"
        )
    return domain


def in_order(*outputs: Operator) -> list[Operator]:
    """Every operator that the outputs need, each after those that it reads."""
    seen: dict[Operator, None] = {}

    def visit(operator: Operator) -> None:
        if operator not in seen:
            for one in operator.inputs:
                visit(one)
            seen[operator] = None

    for output in outputs:
        visit(output)
    return list(seen)
