"""What both executions of a decompiled network give where text is written token by token."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Output(NamedTuple):
    """What one step gives, by the names that Hugging Face models use."""

    logits: Float[Tensor, "batch pos vocab"]
    """Of the new positions."""
    past_key_values: object
    """What must be kept of all positions so far; given back with the next tokens."""


def joined(tokens: Int[Tensor, "batch pos"], new: list[list[int]]) -> Int[Tensor, "batch more"]:
    """Rows and what was written after each, of one length."""
    return torch.cat([tokens, torch.tensor(new, dtype=tokens.dtype, device=tokens.device)], 1)
