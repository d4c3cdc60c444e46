"""Where a token stands, as one number per kind of claim: the keys that rules are about.

Every kind of claim looks at one aspect of a token's context and maps it to a key. A rule lists
some of the keys of its kind, so testing, scoring and predicting a rule are all lookups by key.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Int, Integer

from unweave.describe.vocabulary import CLASSES, Vocabulary

RuleKind = Literal[
    "token",
    "previous_token",
    "bigram",
    "token_class",
    "previous_class",
    "class_pair",
    "position",
    "repeat",
]
"""Kinds of claim that list keys."""
RULE_KINDS: tuple[RuleKind, ...] = get_args(RuleKind)
REPEATS: tuple[str, ...] = ("new", "seen", "pair seen")
"""Keys of `repeat`: the token is new in its row, was seen, was seen after the same token."""
OCTAVES = 20
"""Keys of `position`: octave i holds the positions 2^i .. 2^(i+1)-1."""


def universe(kind: RuleKind, vocab_size: int) -> int:
    """How many keys a kind of claim chooses from."""
    sizes = {
        "token": vocab_size,
        "previous_token": vocab_size,
        "bigram": vocab_size**2,
        "token_class": len(CLASSES),
        "previous_class": len(CLASSES),
        "class_pair": len(CLASSES) ** 2,
        "position": OCTAVES,
        "repeat": len(REPEATS),
    }
    return sizes[kind]


def context_keys(
    kind: RuleKind, tokens: Integer[np.ndarray, "rows pos"], vocabulary: Vocabulary
) -> Int[np.ndarray, "rows pos"]:
    """The key of every token under a kind of claim; -1 at position 0, which never fires."""
    current = np.asarray(tokens, dtype=np.int64)
    previous = np.empty_like(current)
    previous[:, 1:] = current[:, :-1]
    previous[:, 0] = 0
    keys = _keys(kind, current, previous, vocabulary)
    keys[:, 0] = -1
    return keys


def _keys(
    kind: RuleKind,
    current: Int[np.ndarray, "rows pos"],
    previous: Int[np.ndarray, "rows pos"],
    vocabulary: Vocabulary,
) -> Int[np.ndarray, "rows pos"]:
    match kind:
        case "token":
            return current.copy()
        case "previous_token":
            return previous.copy()
        case "bigram":
            return previous * vocabulary.size + current
        case "token_class":
            return vocabulary.class_of[current]
        case "previous_class":
            return vocabulary.class_of[previous]
        case "class_pair":
            return vocabulary.class_of[previous] * len(CLASSES) + vocabulary.class_of[current]
        case "position":
            return np.tile(_octaves(current.shape[1]), (len(current), 1))
        case "repeat":
            pair = previous * vocabulary.size + current
            # A start token that another row begins with is no news, but within a row it is.
            pair[:, 0] = -1
            return _seen(current).astype(np.int64) + _seen(pair)


def _octaves(positions: int) -> Int[np.ndarray, " pos"]:
    # frexp is exact where log2 may round: 2^i - 1 and 2^i must fall into different octaves.
    _, exponent = np.frexp(np.arange(positions, dtype=np.float64))
    return np.clip(exponent.astype(np.int64) - 1, 0, OCTAVES - 1)


def _seen(keys: Int[np.ndarray, "rows pos"]) -> np.ndarray:
    """Whether the same key stands earlier in the row."""
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, axis=1)
    again = np.zeros(keys.shape, dtype=bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    seen = np.empty_like(again)
    np.put_along_axis(seen, order, again, axis=1)
    return seen
