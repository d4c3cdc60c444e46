"""How well a dictionary reproduces vectors and how it spends its latents: sums first, then ratios.

The sums of two batches add up, so held-out data of any length is measured in pieces, exactly.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode

DECADES = 6
"""The density histogram reaches down to one firing in 10^6 rows."""
BINS_PER_DECADE = 4


@dataclass(frozen=True)
class FidelitySums:
    """What a batch contributes to every ratio of `Fidelity`; in float64, added with `+`."""

    rows: int
    """Vectors seen."""
    pointing: int
    """Of these, targets that are not zero and so have a direction and a length to compare with."""
    target: Float[Tensor, " d_out"]
    """Sum of the target vectors."""
    target_sq: float
    """Sum of their squared norms."""
    output_sq: float
    """Sum of the squared norms of what the dictionary wrote."""
    dot: float
    """Sum of target . output."""
    cosine: float
    """Sum of cosines between the two."""
    ratio: float
    """Sum of |output| / |target|."""
    error_sq: float
    """Sum of squared distances."""
    fired: Int[Tensor, " latents"]
    """In how many rows each latent was not zero."""

    def __add__(self, other: "FidelitySums") -> "FidelitySums":
        return FidelitySums(
            **{name: value + getattr(other, name) for name, value in vars(self).items()}
        )


class Fidelity(NamedTuple):
    """The numbers that go with every dictionary."""

    l0: float
    """Mean number of latents per row that are not zero."""
    mse: float
    """Mean squared error per coordinate, in squared units of the vectors compared: raw ones for
    `validate.fidelity`, scaled ones in a log of training and in `scores.json`."""
    fvu: float
    """Squared error over the target's variance around its mean; 0 is perfect, 1 is the mean."""
    cosine: float
    """Mean cosine between target and output, over targets that are not zero."""
    l2_ratio: float
    """Mean of |output| / |target| over such targets; below 1 the dictionary shrinks."""
    gamma: float
    """Relative reconstruction bias, the g that minimises E|output / g - target|^2 (Rajamanoharan
    et al. 2024): E|output|^2 / E[output . target]; below 1 is shrinkage."""
    alive: float
    """Share of latents that fired at all."""
    density: list[int]
    """Latents by log10 of firing frequency: `BINS_PER_DECADE` bins per decade from 10^-`DECADES`
    to 1. The first bin takes all that fired more rarely, but not those that never did."""


@torch.no_grad()
def fidelity_sums(
    y: Float[Tensor, "rows d_out"], y_hat: Float[Tensor, "rows d_out"], code: SparseCode
) -> FidelitySums:
    """What one batch of targets, outputs and the code between them adds up to.

    Rows are summed in their own precision and added up in float64.
    """
    wide = torch.float64
    squares = [(rows * other).sum(1).to(wide) for rows, other in ((y, y), (y_hat, y_hat))]
    length, length_hat = (square.sqrt() for square in squares)
    dot, error = (y * y_hat).sum(1).to(wide), (y - y_hat).square_().sum(1).to(wide)
    on = length > 0
    return FidelitySums(
        rows=len(y),
        pointing=int(on.sum()),
        target=y.sum(0, dtype=wide),
        target_sq=squares[0].sum().item(),
        output_sq=squares[1].sum().item(),
        dot=dot.sum().item(),
        cosine=(dot / (length * length_hat.clamp_min(1e-12)))[on].sum().item(),
        ratio=(length_hat / length)[on].sum().item(),
        error_sq=error.sum().item(),
        fired=code.fired(),
    )


def fidelity_of(sums: FidelitySums) -> Fidelity:
    """The ratios; nan where nothing was seen or nothing was written."""
    rows, width = sums.rows, len(sums.target)
    variance = sums.target_sq - sums.target.square().sum().item() / max(rows, 1)
    return Fidelity(
        l0=_ratio(sums.fired.sum().item(), rows),
        mse=_ratio(sums.error_sq, rows * width),
        fvu=_ratio(sums.error_sq, variance),
        cosine=_ratio(sums.cosine, sums.pointing),
        l2_ratio=_ratio(sums.ratio, sums.pointing),
        gamma=_ratio(sums.output_sq, sums.dot),
        alive=(sums.fired > 0).double().mean().item(),
        density=density_histogram(sums.fired, rows),
    )


def density_histogram(fired: Int[Tensor, " latents"], rows: int) -> list[int]:
    """How many latents fire how often, in bins of equal width in log10 of frequency."""
    bins = DECADES * BINS_PER_DECADE
    frequency = fired[fired > 0].double() / max(rows, 1)
    place = ((frequency.log10() + DECADES) * BINS_PER_DECADE).floor().long()
    return torch.bincount(place.clamp(0, bins - 1), minlength=bins).tolist()


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")
