"""A world as any dictionary meets it: vectors to learn from, others to be judged on, and the truth.

What the truth is decides what can be asked: directions with strengths, planes, or hidden states.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode


@dataclass(frozen=True)
class Directions:
    """Features that are directions with a strength in every row."""

    directions: Float[Tensor, "features d"]
    """Unit directions."""
    code: SparseCode
    """Strength of each feature in each held-out row."""
    parents: Int[Tensor, " features"] | None = None
    """Whose presence each feature's presence implies; -1 for nobody's."""
    independent: bool = False
    """Whether features come and go on their own: what correlation rows show is then chance, or
    comes of picking the rows that have any."""


@dataclass(frozen=True)
class Turning:
    """Features that turn in a plane each."""

    planes: Float[Tensor, "planes 2 d"]
    """Two orthonormal rows for each."""


@dataclass(frozen=True)
class Hidden:
    """States that a language hides and a network has to guess."""

    states: Int[Tensor, " rows"]
    """State at each held-out row."""
    beliefs: Float[Tensor, "rows states"]
    """What can be known of it."""
    tokens: Int[Tensor, " rows"]
    """The token at each held-out row: what a dictionary might follow instead."""


Truth = Directions | Turning | Hidden


@dataclass(frozen=True)
class World:
    """Vectors and what is true of them."""

    name: str
    """As the catalogue has it."""
    train: Float[Tensor, "rows d"]
    """Vectors to learn from."""
    held_out: Float[Tensor, "others d"]
    """Vectors to be judged on; the truth is about these."""
    truth: Truth
    """What is known."""
    features: int
    """True features: what a dictionary's width is measured against."""
    k: float
    """Features present per vector, on average: what its L0 is measured against."""

    @property
    def d(self) -> int:
        """Width of the vectors."""
        return self.train.shape[1]
