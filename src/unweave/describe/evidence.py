"""What is known of one part: a text, and which of its latents fired where and how strongly."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from unweave.describe.vocabulary import Vocabulary


class Firings(NamedTuple):
    """Firings as parallel arrays, in the order of the text; position 0 of a row is left out."""

    row: Integer[np.ndarray, " firings"]
    """Row of the text, counted from the first of these rows."""
    position: Integer[np.ndarray, " firings"]
    """Position in the row, 1 .. pos-1."""
    latent: Integer[np.ndarray, " firings"]
    """Which latent."""
    value: Float[np.ndarray, " firings"]
    """How strongly, > 0."""


@dataclass(frozen=True)
class PartEvidence:
    """One part's firings on the evidence text: the first rows explain, the rest are held out.

    Position 0 of every row is the start token, where a part emits a stored constant: nothing that
    is listed there counts, in any statistic.
    """

    part: str
    """Name of the part, as `L3.mlp`."""
    tokens: Integer[np.ndarray, "rows pos"]
    """The evidence text."""
    explain_rows: int
    """This many first rows may be looked at for explaining; the others are held out."""
    token_indptr: Integer[np.ndarray, " row_pos_plus_one"]
    """Firings of flat token i are token_indptr[i] : token_indptr[i+1]."""
    latent: Integer[np.ndarray, " firings"]
    """Latent of each firing."""
    value: Float[np.ndarray, " firings"]
    """Activation of each firing, > 0."""
    n_latents: int
    """Number of latents of the part, the dead included."""
    vocabulary: Vocabulary
    """Texts and classes of the tokens."""
    promoted: Integer[np.ndarray, "n_latents ten"] | None = None
    """Tokens whose logits each latent raises most, strongest first; -1 for none."""
    digest: str = ""
    """First six hex digits of the dictionary's hash, for feature ids."""

    def __post_init__(self) -> None:
        rows, positions = self.tokens.shape
        assert 0 < self.explain_rows <= rows, (self.explain_rows, rows)
        assert self.token_indptr.shape == (rows * positions + 1,), self.token_indptr.shape
        assert int(self.token_indptr[-1]) == len(self.latent) == len(self.value)
        assert self.promoted is None or len(self.promoted) == self.n_latents

    @cached_property
    def firings(self) -> Firings:
        """All firings but those at position 0."""
        positions = self.tokens.shape[1]
        token = np.repeat(np.arange(self.tokens.size), np.diff(self.token_indptr))
        row, position = np.divmod(token, positions)
        keep = (position > 0) & (np.asarray(self.value) > 0)
        latent = np.asarray(self.latent)[keep].astype(np.int64)
        value = np.asarray(self.value)[keep].astype(np.float64)
        return Firings(row[keep], position[keep], latent, value)

    def _rows(self, first: int, last: int) -> Firings:
        begin, end = np.searchsorted(self.firings.row, [first, last])
        row, position, latent, value = (field[begin:end] for field in self.firings)
        return Firings(row - first, position, latent, value)

    @cached_property
    def explain(self) -> Firings:
        """Firings on the rows for explaining."""
        return self._rows(0, self.explain_rows)

    @cached_property
    def heldout(self) -> Firings:
        """Firings on the held-out rows."""
        return self._rows(self.explain_rows, len(self.tokens))

    @property
    def explain_tokens(self) -> Integer[np.ndarray, "rows pos"]:
        """Text of the rows for explaining."""
        return self.tokens[: self.explain_rows]

    @property
    def heldout_tokens(self) -> Integer[np.ndarray, "rows pos"]:
        """Text of the held-out rows."""
        return self.tokens[self.explain_rows :]
