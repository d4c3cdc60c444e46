"""Strengths in as few bits as the network notices, and how long a code of them is.

A latent's strengths are cut into 2^B equal steps up to its largest; a firing is sent as its step
and read as the mean of the strengths that fell into it. What a token costs is the code length

    sum_i -log2 p_i(silent)   or   -log2 p_i(fires) - log2 p_i(step | fires)

with probabilities from the text for explaining, so that on held-out text it is a length that a
real coder reaches (latents independent of each other). MDL-SAE (Ayonrinde, Pearce & Sharkey,
arXiv:2410.11179) takes the entropies H(q(f_i)) themselves, which the same text is both counted
and coded with; B is, as there, the coarsest that the network does not notice.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from unweave.describe.evidence import Firings
from unweave.dictionaries.code import SparseCode
from unweave.validate.placed import Edit

POOLED = 8.0
"""Firings that the steps of all latents together count for in each latent's own."""


@dataclass(frozen=True)
class Levels:
    """The steps of one part's latents."""

    bits: int
    """B; with 0 a firing is worth the latent's mean strength."""
    top: Float[np.ndarray, " latents"]
    """Largest strength of each latent."""
    centre: Float[np.ndarray, "latents steps"]
    """What each step stands for."""
    silent_bits: Float[np.ndarray, " latents"]
    """Cost of a latent's silence at one place."""
    step_bits: Float[np.ndarray, "latents steps"]
    """Cost of a firing on each step."""

    def step(
        self, latent: Int[np.ndarray, " firings"], value: Float[np.ndarray, " firings"]
    ) -> Int[np.ndarray, " firings"]:
        """Which step strengths fall on; what exceeds the largest falls on the last."""
        return _step(latent, value, self.top, self.bits)

    def edit(self) -> Edit:
        """The code with every strength replaced by what its step stands for."""
        top, centre = torch.from_numpy(self.top), torch.from_numpy(self.centre)
        steps = 2**self.bits

        def quantised(code: SparseCode, shape: tuple[int, int]) -> SparseCode:
            latent, value = code.support.latent, code.value
            share = value.double() / top[latent]
            step = (share * steps).ceil().long().sub(1).clamp(0, steps - 1)
            read = centre[latent, step].to(value.dtype)
            return code._replace(value=torch.where(value > 0, read, value))

        return quantised

    def row_bits(self, firings: Firings, rows: int, places: int) -> Float[np.ndarray, " rows"]:
        """Bits to send the code of each row of `places` places."""
        step = self.step(firings.latent, firings.value)
        extra = self.step_bits[firings.latent, step] - self.silent_bits[firings.latent]
        bits = np.bincount(firings.row, weights=extra, minlength=rows)
        return bits + places * self.silent_bits.sum()


def fit_levels(firings: Firings, places: int, n_latents: int, bits: int) -> Levels:
    """Steps, what they stand for and what they cost, from firings on `places` places."""
    latent, value, steps = firings.latent, firings.value, 2**bits
    count = np.bincount(latent, minlength=n_latents).astype(np.float64)
    top = np.zeros(n_latents)
    np.maximum.at(top, latent, value)
    top[top == 0] = top.max(initial=0.0) or 1.0
    cell = latent * steps + _step(latent, value, top, bits)
    size = n_latents * steps
    held = np.bincount(cell, minlength=size).reshape(n_latents, steps).astype(np.float64)
    total = np.bincount(cell, weights=value, minlength=size).reshape(n_latents, steps)
    middle = (np.arange(steps) + 0.5) / steps * top[:, None]
    pooled = (held.sum(0) + 1.0) / (held.sum() + steps)
    share = (held + POOLED * pooled) / (count + POOLED)[:, None]
    fires = (count + 0.5) / (places + 1.0)
    return Levels(
        bits=bits,
        top=top,
        centre=np.where(held > 0, total / np.maximum(held, 1.0), middle),
        silent_bits=-np.log2(1.0 - fires),
        step_bits=-np.log2(fires)[:, None] - np.log2(share),
    )


def coarsest(worse: Callable[[int], bool], most: int) -> int:
    """The fewest bits that are not noticed, 0 to `most`, where more are never noticed sooner.

    >>> coarsest(lambda bits: bits < 5, 12)
    5
    """
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if worse(middle) else (low, middle)
    return low


def _step(
    latent: Int[np.ndarray, " firings"],
    value: Float[np.ndarray, " firings"],
    top: Float[np.ndarray, " latents"],
    bits: int,
) -> Int[np.ndarray, " firings"]:
    steps = 2**bits
    return np.clip(np.ceil(value / top[latent] * steps).astype(np.int64) - 1, 0, steps - 1)
