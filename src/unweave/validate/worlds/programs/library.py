"""Programs whose networks are benchmarks: each with the same function in plain Python beside it.

A builder is given the words and the places and gives the output, so that one program can also be
compiled beside another, where its output is not asked for (`distractor`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from unweave.errors import UserError
from unweave.validate.worlds.programs.language import (
    Aggregate,
    Bin,
    Combine,
    Indices,
    Map,
    Operator,
    Select,
    Tokens,
    Value,
    count,
)
from unweave.validate.worlds.programs.program import Program

Builder = Callable[[Tokens, Indices], Operator]
Words = Sequence[str]


def same(key: Value, query: Value) -> bool:
    """Whether key and query are one value."""
    return key == query


def anything(key: Value, query: Value) -> bool:
    """True."""
    return True


def _previous(tokens: Tokens, indices: Indices) -> Operator:
    before = Select(indices, indices, lambda k, q: k == q - 1)
    return Aggregate("previous", before, tokens)


def _reverse(tokens: Tokens, indices: Indices) -> Operator:
    length = count("length", Select(tokens, tokens, anything), indices.length)
    mirror = Map("mirror", lambda n, i: n - 1 - i, (length, indices))
    return Aggregate("reversed", Select(indices, mirror, same), tokens)


def _histogram(tokens: Tokens, indices: Indices) -> Operator:
    return count("count", Select(tokens, tokens, same), indices.length)


def _fraction_of_first(tokens: Tokens, indices: Indices) -> Operator:
    is_first = Map("is_x", lambda w: float(w == tokens.vocabulary[0]), (tokens,), numerical=True)
    share = Aggregate("share_x", Select(tokens, tokens, anything), is_first)
    return Bin("fraction", share, {float(f): str(f) for f in _fractions(indices.length)})


def _fractions(length: int) -> set[Fraction]:
    return {Fraction(k, n) for n in range(1, length + 1) for k in range(n + 1)}


def _sort(tokens: Tokens, indices: Indices) -> Operator:
    order = {word: i for i, word in enumerate(tokens.vocabulary)}
    place = Map("place", lambda w, i: order[w] * indices.length + i, (tokens, indices))
    rank = count("rank", Select(place, place, lambda k, q: k < q), indices.length - 1)
    return Aggregate("sorted", Select(rank, indices, same), tokens)


def _induction(tokens: Tokens, indices: Indices) -> Operator:
    before = _previous(tokens, indices)
    return Aggregate("copied", Select(before, tokens, same, latest=indices), tokens)


def _most_frequent(tokens: Tokens, indices: Indices) -> Operator:
    order = {word: i for i, word in enumerate(reversed(tokens.vocabulary))}
    often = _histogram(tokens, indices)
    weight = Map("weight", lambda n, w: n * len(order) + order[w], (often, tokens))
    length = count("length", Select(tokens, tokens, anything), indices.length)
    within = count("within", Select(weight, weight, lambda k, q: k <= q), indices.length)
    top = Map("is_top", lambda n, m: n == m, (within, length))
    return Aggregate("mode", Select(top, tokens, lambda k, q: k is True), tokens)


def _first_after_second(tokens: Tokens, indices: Indices) -> Operator:
    a, b = tokens.vocabulary[:2]
    before = _previous(tokens, indices)
    return Map("is_ab", lambda p, w: "yes" if (p, w) == (a, b) else "no", (before, tokens))


def _balanced(tokens: Tokens, indices: Indices) -> Operator:
    everything = Select(tokens, tokens, anything)
    marks = tokens.vocabulary[:2]
    shares = tuple(
        Aggregate(
            f"share_{name}",
            everything,
            Map(f"is_{name}", lambda w, m=mark: float(w == m), (tokens,), numerical=True),
        )
        for name, mark in zip(("open", "close"), marks, strict=True)
    )
    depth = Combine("depth", shares, (1.0, -1.0))
    least = 1 / indices.length
    sign = Bin("sign", depth, {-least: "below", 0.0: "level", least: "above"})
    fell = Map("fell", lambda s: float(s == "below"), (sign,), numerical=True)
    ever = Bin("ever", Aggregate("share_fell", everything, fell), {0.0: "never", least: "once"})
    return Map(
        "balanced", lambda s, e: "yes" if (s, e) == ("level", "never") else "no", (sign, ever)
    )


def _plain_induction(words: Words) -> list[Value]:
    found: list[Value] = []
    for i, word in enumerate(words):
        after = [words[j] for j in range(1, i + 1) if words[j - 1] == word]
        found.append(after[-1] if after else None)
    return found


def _plain_sort(words: Words, vocabulary: Words) -> list[Value]:
    return [word for word in vocabulary for _ in range(list(words).count(word))]


def _plain_mode(words: Words, vocabulary: Words) -> list[Value]:
    often = Counter(words)
    best = max(vocabulary, key=lambda w: (often[w], -list(vocabulary).index(w)))
    return [best] * len(words)


def _plain_balanced(words: Words, vocabulary: Words) -> list[Value]:
    depth, broken, found = 0, False, []
    for word in words:
        depth += {vocabulary[0]: 1, vocabulary[1]: -1}.get(word, 0)
        broken = broken or depth < 0
        found.append("no" if broken or depth else "yes")
    return list(found)


def _plain_fraction(words: Words, x: str) -> list[Value]:
    return [str(Fraction(list(words[: i + 1]).count(x), i + 1)) for i in range(len(words))]


class Entry(NamedTuple):
    """One program of the library."""

    build: Builder
    """Its output from words and places."""
    causal: bool
    """Whether a place sees only what came before."""
    plain: Callable[[Words, Words], Sequence[Value]]
    """The same of words and vocabulary, in plain Python."""
    words: str = "abcd"
    """Its usual vocabulary, a letter a word."""
    length: int = 8
    """Its usual longest sequence."""


LIBRARY: dict[str, Entry] = {
    "previous token": Entry(_previous, True, lambda w, _: [None, *w[:-1]]),
    "reverse": Entry(_reverse, False, lambda w, _: list(w)[::-1]),
    "histogram": Entry(_histogram, False, lambda w, _: [list(w).count(x) for x in w]),
    "fraction of x": Entry(
        _fraction_of_first, True, lambda w, v: _plain_fraction(w, v[0]), words="xyz"
    ),
    "sort": Entry(_sort, False, _plain_sort, length=6),
    "induction": Entry(_induction, True, lambda w, _: _plain_induction(w)),
    "most frequent": Entry(_most_frequent, False, _plain_mode),
    "pattern ab": Entry(
        _first_after_second,
        True,
        lambda w, v: [
            "yes" if i and (w[i - 1], w[i]) == (v[0], v[1]) else "no" for i in range(len(w))
        ],
    ),
    "balanced": Entry(_balanced, True, _plain_balanced, words="()x"),
}
"""All programs by name."""


def program(name: str, *, words: str | None = None, length: int | None = None) -> Program:
    """One of the library's programs, over its usual words and length unless told otherwise.

    Raises:
        UserError: no program of that name.
    """
    if name not in LIBRARY:
        raise UserError(f"There is no program {name!r}; there are {', '.join(LIBRARY)}")
    entry = LIBRARY[name]
    vocabulary = tuple(words or entry.words)
    tokens = Tokens("tokens", vocabulary)
    indices = Indices("indices", length or entry.length)
    return Program(
        name=name,
        tokens=tokens,
        indices=indices,
        output=entry.build(tokens, indices),
        causal=entry.causal,
        reference=lambda given: entry.plain(given, vocabulary),
    )


def distractor(name: str, beside: Program) -> Operator:
    """The output of a program of the library over another's words, to be compiled beside it.

    It need not make sense there: it is computed, and nobody reads it.

    Raises:
        UserError: no program of that name.
    """
    if name not in LIBRARY:
        raise UserError(f"There is no program {name!r}; there are {', '.join(LIBRARY)}")
    return LIBRARY[name].build(beside.tokens, beside.indices)
