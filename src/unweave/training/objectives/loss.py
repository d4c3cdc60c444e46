"""What an objective gives back: the loss, and each dictionary's pass for whoever watches."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from unweave.dictionaries.dictionary import Pass


class Watched(NamedTuple):
    """One dictionary's part in a step, in its scaled units."""

    x: Float[Tensor, "rows d_in"]
    """What it read."""
    y: Float[Tensor, "rows d_out"]
    """What it should have written, as the original network has it."""
    passed: Pass
    """What it did."""


class Loss(NamedTuple):
    """One step's loss."""

    total: Float[Tensor, ""]
    """What is differentiated."""
    watched: dict[str, Watched]
    """By the name of the dictionary."""
    log: dict[str, float]
    """The loss's parts."""


class State(NamedTuple):
    """Where the run stands, for objectives that change with it."""

    step: int
    """Steps done."""
    done: float
    """Share of the run that is done."""
    dead: Mapping[str, Bool[Tensor, " latents"]]
    """Dead latents by the name of their dictionary."""
