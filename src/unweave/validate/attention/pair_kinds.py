"""Kinds of pairs of positions that attention is known for, each beside pairs that match it.

A kind says of every query and key of a row whether the pair is of it. To see whether something
happens to pairs of a kind *because* they are of it, others are needed that are alike otherwise: for
kinds that are a distance, the key next to it; for kinds that are about tokens, pairs that are as
far apart but not of the kind, weighted so that both have the same distances.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.subject import Subject

Rule = Callable[[Int[Tensor, "rows pos"]], Tensor]


class PairKind(NamedTuple):
    """A kind of pair."""

    name: str
    """As tables have it."""
    rule: Rule
    """From tokens [rows, pos] to whether each pair is of the kind [rows, query, key]."""
    is_distance: bool
    """Whether it is a matter of where the two stand alone."""


def marked(kind: PairKind, tokens: Int[Tensor, "rows pos"]) -> Bool[Tensor, "rows query key"]:
    """Pairs of a kind, of those that a query can see; the first query sees nothing else."""
    n = tokens.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    seen[0] = False
    return kind.rule(tokens) & seen


def matched(kind: PairKind, tokens: Int[Tensor, "rows pos"]) -> Float[Tensor, "rows query key"]:
    """Weights of the pairs that a kind is compared with."""
    mine = marked(kind, tokens)
    n = tokens.shape[1]
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if kind.is_distance:
        beside = mine.roll(-1, 2)
        beside[:, :, -1] = False
        # The first key has none before it: the next one stands for it.
        beside[:, :, 1] |= mine[:, :, 0]
        return (beside & seen & ~mine).float()
    others = seen & ~mine
    others[:, 0] = False
    # The start is a key like no other.
    others[:, :, 0] = False
    apart = torch.arange(n)[:, None] - torch.arange(n)
    weights = torch.zeros(mine.shape)
    for distance in range(n):
        line = apart == distance
        share = mine[:, line].sum() / others[:, line].sum().clamp_min(1)
        weights[:, line] = share * others[:, line].float()
    return weights


def back(distance: int) -> Rule:
    """The key so many positions before its query."""

    def rule(tokens: Int[Tensor, "rows pos"]) -> Tensor:
        n = tokens.shape[1]
        apart = torch.arange(n)[:, None] - torch.arange(n)
        return (apart == distance).expand(len(tokens), n, n)

    return rule


def at_start(tokens: Int[Tensor, "rows pos"]) -> Tensor:
    """The first key of a row."""
    n = tokens.shape[1]
    return (torch.arange(n) == 0).expand(len(tokens), n, n)


def duplicate(tokens: Int[Tensor, "rows pos"]) -> Tensor:
    """An earlier key of the query's own token."""
    same = tokens[:, :, None] == tokens[:, None]
    return same.tril(-1)


def induction(tokens: Int[Tensor, "rows pos"]) -> Tensor:
    """A key that comes right after an earlier place of the query's own token."""
    return duplicate(tokens).roll(1, 2).tril()


def one_of(ids: Int[Tensor, " ids"]) -> Rule:
    """A key that is one of some tokens."""

    def rule(tokens: Int[Tensor, "rows pos"]) -> Tensor:
        n = tokens.shape[1]
        return torch.isin(tokens, ids)[:, None].expand(len(tokens), n, n)

    return rule


def pair_kinds(subject: Subject) -> Mapping[str, PairKind]:
    """The kinds that can be asked of a subject's rows, by name; delimiters need a tokenizer."""
    kinds = [
        PairKind("previous token", back(1), True),
        PairKind("two before", back(2), True),
        PairKind("present token", back(0), True),
        PairKind("start", at_start, True),
        PairKind("duplicate", duplicate, False),
        PairKind("induction", induction, False),
    ]
    if subject.tokenizer is not None:
        ids = torch.tensor(delimiters(subject))
        kinds.append(PairKind("delimiter", one_of(ids), False))
    return {kind.name: kind for kind in kinds}


def delimiters(subject: Subject) -> list[int]:
    """Tokens that hold no letter and no digit."""
    assert subject.tokenizer is not None
    pieces = subject.tokenizer.pieces(range(min(len(subject.tokenizer), subject.vocab_size)))
    start = subject.start_token
    return [i for i, p in enumerate(pieces) if not any(c.isalnum() for c in p) and i != start]
