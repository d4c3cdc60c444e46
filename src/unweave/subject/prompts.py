"""Prompts of unequal length run together.

Rows are filled up on the right; attention is causal, so what is filled in changes nothing before.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from unweave.subject.network import Subject

Row = Sequence[int]
"""Token ids of one prompt, its start token included."""


class Padded(NamedTuple):
    """Prompts of unequal length as one tensor."""

    tokens: Int[Tensor, "batch pos"]
    """Filled up on the right with token 0."""
    last: Int[Tensor, " batch"]
    """Position of each prompt's last token."""


def prompt_rows(subject: Subject, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text after the subject's start token."""
    assert subject.tokenizer is not None
    start = [] if subject.start_token is None else [subject.start_token]
    return [start + ids for ids in subject.tokenizer.encode_many(texts)]


def padded(rows: Sequence[Row]) -> Padded:
    """Rows of unequal length as one tensor."""
    longest = max(map(len, rows))
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = torch.tensor(row)
    return Padded(tokens, torch.tensor([len(row) - 1 for row in rows]))


def by_length(rows: Sequence[Row], batch: int) -> Iterator[Int[Tensor, " batch"]]:
    """Indices of rows in groups of similar length."""
    order = torch.tensor([len(row) for row in rows], dtype=torch.long).argsort(stable=True)
    yield from (group for group in order.split(batch) if len(group))
