"""A program: an output worked out from words and places, with the tokens that stand for both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from jaxtyping import Int
from torch import Tensor

from unweave.errors import UserError
from unweave.validate.worlds.programs.interpreter import Values, interpret
from unweave.validate.worlds.programs.language import (
    Indices,
    Operator,
    Tokens,
    Value,
    categories,
)

START = "<s>"
"""The word that every row begins with; no program sees it."""


@dataclass(frozen=True, eq=False)
class Program:
    """What is compiled."""

    name: str
    """What it is called."""
    tokens: Tokens
    """Its words."""
    indices: Indices
    """Its places."""
    output: Operator
    """What it gives at every place; categorical."""
    causal: bool
    """Whether a place sees only itself and what comes before it."""
    reference: Callable[[Sequence[str]], Sequence[Value]] | None = None
    """The same function in plain Python, where somebody wrote it down."""

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """What every token id stands for: the start, the words, and outputs that are no words."""
        words = self.tokens.vocabulary
        rest = [v for v in categories(self.output) if v not in words]
        return (START, *words, *(str(v) for v in rest))

    @cached_property
    def answer_ids(self) -> dict[Value, int]:
        """The token id of every value that the program can give."""
        words = self.tokens.vocabulary
        known = {word: 1 + i for i, word in enumerate(words)}
        rest = [v for v in categories(self.output) if v not in words]
        return {v: known[v] for v in categories(self.output) if v in known} | {
            v: 1 + len(words) + i for i, v in enumerate(rest)
        }

    @property
    def context(self) -> int:
        """Longest row, start included."""
        return self.indices.length + 1

    def encode(self, rows: Sequence[Sequence[str]]) -> Int[Tensor, "rows pos"]:
        """Rows of words of one length as token ids, each after the start token."""
        known = {word: 1 + i for i, word in enumerate(self.tokens.vocabulary)}
        try:
            return torch.tensor([[0, *(known[word] for word in row)] for row in rows])
        except KeyError as error:
            raise UserError(f"{self.name} knows no word {error.args[0]!r}") from error

    def decode(self, rows: Int[Tensor, "rows pos"]) -> list[list[str]]:
        """The words of rows of token ids, without the start."""
        return [[self.vocabulary[t] for t in row] for row in rows[:, 1:].tolist()]

    def values(self, words: Sequence[str], *others: Operator) -> Values:
        """Every variable of the program at every place, and of other operators on the same words.

        Raises:
            UserError: as `interpret` does.
        """
        outputs = (self.tokens, self.indices, self.output, *others)
        return interpret(*outputs, words=words, causal=self.causal)

    def answers(self, rows: Int[Tensor, "rows pos"]) -> Int[Tensor, "rows pos-1"]:
        """The token ids of what the program gives at every place after the start."""
        given = [self.values(words)[self.output] for words in self.decode(rows)]
        return torch.tensor([[self.answer_ids[value] for value in row] for row in given])

    def all_rows(self, length: int) -> Int[Tensor, "rows pos"]:
        """Every sequence of so many words."""
        return self.encode(list(product(self.tokens.vocabulary, repeat=length)))

    def draw(self, rows: int, *, length: int, seed: int) -> Int[Tensor, "rows pos"]:
        """Rows of uniformly random words."""
        generator = torch.Generator().manual_seed(seed)
        size = len(self.tokens.vocabulary)
        words = 1 + torch.randint(size, (rows, length), generator=generator)
        return torch.cat([torch.zeros(rows, 1, dtype=torch.long), words], dim=1)
