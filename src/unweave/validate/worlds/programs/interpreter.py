"""What a program says, worked out value by value: the truth that its network is held to."""

from collections.abc import Mapping, Sequence

from unweave.errors import UserError
from unweave.validate.worlds.programs.language import (
    Aggregate,
    Bin,
    Combine,
    Indices,
    Map,
    Operator,
    Select,
    Share,
    Tokens,
    Value,
    in_order,
)

Values = dict[Operator, list[Value]]
"""Every operator's value at every place."""


def interpret(
    *outputs: Operator,
    words: Sequence[str],
    causal: bool,
    held: Mapping[tuple[Operator, int], Value] | None = None,
) -> Values:
    """Evaluate operators, and all that they need, on one sequence.

    With `causal`, a place selects only from itself and the places before it. What is `held`, an
    operator at a place, has that value whatever it is computed from.

    Raises:
        UserError: words outside the vocabulary, a sequence that is too long, or a categorical
            aggregate over places that hold different values.
    """
    found: Values = {}
    for operator in in_order(*outputs):
        found[operator] = _evaluate(operator, found, words, causal)
        for (one, place), value in (held or {}).items():
            if one is operator:
                found[operator][place] = value
    return found


def _evaluate(operator: Operator, found: Values, words: Sequence[str], causal: bool) -> list[Value]:
    match operator:
        case Tokens():
            if strange := set(words) - set(operator.vocabulary):
                raise UserError(
                    f"The program knows no word {sorted(strange)[0]!r}; its words are "
                    f"{', '.join(operator.vocabulary)}"
                )
            return list(words)
        case Indices():
            if len(words) > operator.length:
                raise UserError(f"{len(words)} words are more than the program's {operator.length}")
            return list(range(len(words)))
        case Map():
            return [operator.function(*given) for given in _columns(operator, found)]
        case Combine():
            return [
                float(sum(w * float(v or 0) for w, v in zip(operator.weights, given, strict=True)))
                for given in _columns(operator, found)
            ]
        case Bin():
            return [nearest(operator, value) for value in found[operator.of]]
        case Aggregate():
            values = found[operator.values]
            chosen = selected(operator.select, found, causal)
            return [_gather(operator, [values[j] for j in places]) for places in chosen]
        case Share():
            return [1 / (1 + len(p)) for p in selected(operator.select, found, causal)]
    raise UserError(f"{operator.name} is no operator that the language knows")


def _columns(operator: Operator, found: Values) -> list[tuple[Value, ...]]:
    return list(zip(*(found[one] for one in operator.inputs), strict=True))


def nearest(operator: Bin, value: Value) -> Value:
    """The label of the point nearest to a number."""
    number = float(value or 0)
    return operator.points[min(operator.points, key=lambda point: abs(point - number))]


def selected(select: Select, found: Values, causal: bool) -> list[list[int]]:
    """The places that each place selects, in ascending order."""
    keys, queries = found[select.keys], found[select.queries]
    chosen = []
    for i, query in enumerate(queries):
        seen = keys[: i + 1] if causal else keys
        places = [j for j, key in enumerate(seen) if select.predicate(key, query)]
        chosen.append(places[-1:] if select.latest else places)
    return chosen


def _gather(operator: Aggregate, values: list[Value]) -> Value:
    if operator.domain is None:
        return sum(float(v or 0) for v in values) / len(values) if values else 0.0
    if len(set(values)) > 1:
        raise UserError(
            f"{operator.name} gathers {len(set(values))} different values at one place; a "
            "categorical aggregate must select places that agree"
        )
    return values[0] if values else None
