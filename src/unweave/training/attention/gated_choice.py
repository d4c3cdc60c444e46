"""Which of several starts of a gated block to keep, told from text alone.

The loss of a gated block does not always tell whether what it does is in one head each: two heads
half open cost little more than one. What is wanted can be asked for directly, without knowing any
behaviour: at every place let the one head speak that alone comes nearest to what is to be written,
and see how much is missed.

    missed = sum_t min(|out*_t|^2, min_h |out*_t - out_ht|^2) / sum_t |out*_t|^2

Zero where each place is one head's doing, whichever; one where no head alone is of any use.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.dictionaries.attention.gated_block import GatedBlock
from unweave.errors import UserError


@torch.no_grad()
def missed_by_one_head(
    block: GatedBlock,
    x: Float[Tensor, "batch pos d_model"],
    y: Float[Tensor, "batch pos d_model"],
) -> float:
    """Share of `y` that is missed if each place has but the head that serves it best.

    `x` is what attention reads on some rows and `y` what it is to write; the first place of a row,
    where there is nothing but itself to attend to, is left out.

    Raises:
        UserError: nothing is to be written.
    """
    there = y[:, 1:]
    whole = there.square().sum(-1)
    if not whole.sum() > 0:
        raise UserError("No head can be told from another where nothing is to be written")
    left = (there[:, :, None] - block.by_head(x)[:, 1:]).square().sum(-1).amin(-1)
    return (torch.minimum(left, whole).sum() / whole.sum()).item()


def best_start(
    blocks: Sequence[GatedBlock],
    x: Float[Tensor, "batch pos d_model"],
    y: Float[Tensor, "batch pos d_model"],
) -> int:
    """The block, of several made for the same attention, of which one head a place misses least.

    Take rows that none of them was trained on. Raises a UserError without blocks.
    """
    if not blocks:
        raise UserError("There is no start to choose: give at least one block")
    missed = [missed_by_one_head(block, x, y) for block in blocks]
    return missed.index(min(missed))
