"""Pairs of prompts, one clean and one corrupted, with the answers that tell them apart."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Contrast(NamedTuple):
    """Two prompts of the same length."""

    clean: tuple[int, ...]
    """Token ids of the prompt, its start token included."""
    corrupt: tuple[int, ...]
    """Token ids of the prompt whose answer is another."""
    right: tuple[int, ...]
    """Tokens that go on rightly after the clean prompt."""
    wrong: tuple[int, ...]
    """Tokens that do not."""


class Pairs(NamedTuple):
    """Contrasts run together."""

    which: Int[Tensor, " batch"]
    """Which of the contrasts."""
    clean: Int[Tensor, "batch pos"]
    """Clean prompts, filled up on the right with token 0."""
    corrupt: Int[Tensor, "batch pos"]
    """Corrupted prompts, filled up the same."""
    last: Int[Tensor, " batch"]
    """Position of the last token of each."""
    contrasts: tuple[Contrast, ...]
    """The contrasts themselves."""


Metric = Callable[[Float[Tensor, "batch pos vocab"], Pairs], Float[Tensor, " batch"]]
"""How well the logits answer each clean prompt."""


def logit_difference(
    logits: Float[Tensor, "batch pos vocab"], pairs: Pairs
) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers less that of the wrong ones, after the last token."""
    at = torch.arange(len(logits), device=logits.device)
    last = logits[at, pairs.last.to(logits.device)].float()
    found = [
        row[list(one.right)].mean() - row[list(one.wrong)].mean()
        for row, one in zip(last, pairs.contrasts, strict=True)
    ]
    return torch.stack(found)


def in_pairs(contrasts: Sequence[Contrast], batch: int) -> Iterator[Pairs]:
    """Contrasts in groups of similar length."""
    order = torch.tensor([len(c.clean) for c in contrasts]).argsort(stable=True)
    for which in order.split(batch):
        some = tuple(contrasts[at] for at in which.tolist())
        longest = max(len(c.clean) for c in some)
        clean, corrupt = (
            torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
            for rows in ([c.clean for c in some], [c.corrupt for c in some])
        )
        last = torch.tensor([len(c.clean) - 1 for c in some])
        yield Pairs(which, clean, corrupt, last, some)
