"""Places in the text where a feature fires, with what it does around them."""

import math
from typing import NamedTuple

import numpy as np

from unweave.artifact.firings import Firings
from unweave.artifact.folder import Artifact
from unweave.report.facts import Example, Piece
from unweave.report.read.words import Words

BEFORE, AFTER = 15, 8
"""Tokens shown before and after the peak."""
TOP, LOWER = 3, 3
"""Examples among the strongest, and from the quantile bands below them."""


class Passages:
    """The evidence text of an artifact; every array stays on disk until a slice is asked for."""

    def __init__(self, artifact: Artifact, words: Words) -> None:
        self._words = words
        self._tokens = artifact.tokens()

    def example(self, firings: Firings, want: "Wanted") -> Example:
        """The passage around a place, with the activations of one latent."""
        width = self._tokens.shape[1]
        row, peak = divmod(want.place, width)
        # Position 0 holds the start token, where parts emit a constant: nothing there counts.
        first, last = max(peak - BEFORE, 1), min(peak + AFTER + 1, width)
        values = _values(firings, want.latent, row * width + first, row * width + last)
        pieces: list[Piece] = []
        for position, value in enumerate(values, start=first):
            text = self._words[int(self._tokens[row, position])]
            here = position == peak
            if not here and value == 0 and pieces and pieces[-1].level == 0 and not pieces[-1].peak:
                pieces[-1] = Piece(pieces[-1].text + text, 0.0, 0, False)
            else:
                pieces.append(Piece(text, value, shade(value, want.greatest), here))
        return Example(want.band, values[peak - first], tuple(pieces))


def _values(firings: Firings, latent: int, first: int, last: int) -> list[float]:
    """One latent's activation at the flat positions first .. last - 1; 0 where it is silent."""
    starts = np.asarray(firings.token_indptr[first : last + 1])
    here = slice(int(starts[0]), int(starts[-1]))
    hits = np.flatnonzero(firings.latent[here] == latent)
    values = np.zeros(last - first)
    values[np.searchsorted(starts - starts[0], hits, side="right") - 1] = firings.value[here][hits]
    return [float(value) for value in values]


class Wanted(NamedTuple):
    """One example to fetch."""

    latent: int
    """Whose activations to show."""
    place: int
    """Flat position in the evidence text."""
    band: int
    """0: among the strongest; 1, 2 ...: quantiles downwards."""
    greatest: float
    """The latent's greatest activation, for the shades."""


def shade(value: float, greatest: float) -> int:
    """0 for nothing, else 1 to 9 in proportion to the feature's greatest activation."""
    if not value > 0:
        return 0
    return min(9, max(1, math.ceil(9 * value / greatest))) if greatest > 0 else 9


def chosen(bands: np.ndarray, places: np.ndarray) -> list[int]:
    """Which of a feature's examples to show: the strongest, then one each from spread-out bands."""
    filled = [index for index in range(len(places)) if places[index] >= 0]
    top = [index for index in filled if bands[index] == 0][:TOP]
    first_of: dict[int, int] = {}
    for index in filled:
        if bands[index] > 0:
            first_of.setdefault(int(bands[index]), index)
    lower = [first_of[band] for band in sorted(first_of)]
    if len(lower) > LOWER:
        lower = [lower[round(i * (len(lower) - 1) / (LOWER - 1))] for i in range(LOWER)]
    return top + lower
