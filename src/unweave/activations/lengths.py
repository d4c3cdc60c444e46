"""Rows of text of unequal length: which are run together, so that little is computed for padding.

A padded row is computed as far as its group's longest. Causal networks never look ahead, so that
padding on the right changes nothing before it, and its own vectors are not stored.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def cut_windows(lengths: Sequence[int], tokens: int) -> list[range]:
    """Rows in order, as many to a window as hold at most `tokens`; one at least."""
    windows, start, held = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and held + length > tokens:
            windows.append(range(start, row))
            start, held = row, 0
        held += length
    return [*windows, range(start, len(lengths))] if len(lengths) else windows


def buckets(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Places of rows that are run together: of like length, at most `tokens` padded, one at least.

    Where all are equally long they stay in order.
    """
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or (len(groups[-1]) + 1) * longest > tokens:
            groups.append([])
        groups[-1].append(place)
    return groups


def padded(rows: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "rows longest"]:
    """Rows side by side, the short ones filled up on the right with their last token."""
    longest = max(map(len, rows))
    return torch.stack([torch.cat([r, r[-1:].expand(longest - len(r))]) for r in rows])
