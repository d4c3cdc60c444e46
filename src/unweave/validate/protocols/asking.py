"""Prompts put to a subject, with coders standing in it or not: what it says after each."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject import Subject
from unweave.subject.prompts import Row, by_length, padded
from unweave.subject.running import Replacement
from unweave.validate.placed import Edit, Placed, run_with


class Answered(NamedTuple):
    """What follows some prompts."""

    which: Int[Tensor, " batch"]
    """Which of the prompts."""
    logits: Float[Tensor, "batch vocab"]
    """Of the token after each."""


@torch.no_grad()
def answers(
    subject: Subject,
    rows: Sequence[Row],
    *,
    batch: int = 16,
    standing: Sequence[Placed] = (),
    edit: Edit | None = None,
    replace: dict[str, Replacement] | None = None,
) -> Iterator[Answered]:
    """Logits of the token after each prompt, group by group.

    With `standing` and `edit`, codes are changed on the way and what coders do not reproduce stays.
    """
    for index in by_length(rows, batch):
        group = padded([rows[at] for at in index.tolist()])
        if standing:
            run = run_with(subject, group.tokens, standing, edit=edit, keep_error=True)
        else:
            run = subject.run(group.tokens, replace=replace or {})
        assert run.logits is not None
        at = torch.arange(len(index), device=run.logits.device)
        yield Answered(index, run.logits[at, group.last.to(at.device)].float().cpu())
