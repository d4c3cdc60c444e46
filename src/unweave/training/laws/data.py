"""What the vectors themselves say before any training: numbers on which the best settings depend.

Everything is measured after the scaling that training applies, on at most `ROWS` vectors.
"""

import math

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unweave.errors import UserError

ROWS = 16_384
"""Vectors that the statistics are taken from."""
NEIGHBOURS = 2_000
"""Vectors whose two nearest neighbours are looked up."""


class DataStatistics(BaseModel):
    """Numbers about a site's vectors, and about the text where it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    width: int
    """Coordinates of a vector."""
    spectrum_exponent: float
    """Power with which the covariance's eigenvalues fall with their rank, fitted over the first
    half of the ranks on a log-log scale."""
    participation: float
    """Participation ratio (sum of eigenvalues)^2 / sum of squares: directions in use."""
    intrinsic: float
    """TwoNN dimension (Facco et al. 2017)."""
    tails: tuple[float, ...]
    """Share of the variance beyond the first 4, 8, 16 and 32 principal directions: the FVU of a
    dense code of so many numbers."""
    kurtosis: float
    """Mean excess kurtosis along the principal directions, weighted by variance: 0 for a Gaussian,
    positive where directions are used rarely and strongly."""
    token_entropy: float | None = None
    """Entropy of the tokens' frequencies, bits; None where there is no text."""


TAIL_RANKS = (4, 8, 16, 32)
"""Ranks of `DataStatistics.tails`."""


def data_statistics(
    vectors: Float[Tensor, "rows width"],
    *,
    tokens: Int[Tensor, "..."] | None = None,
    seed: int = 0,
) -> DataStatistics:
    """Measure all of them; equal arguments give equal numbers.

    Raises:
        UserError: fewer than 64 vectors, or all of them alike.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(vectors) < 64:
        raise UserError(f"{len(vectors)} vectors are too few to say what they are like: give 64")
    drawn = torch.randperm(len(vectors), generator=generator)[:ROWS]
    rows = vectors[drawn].double()
    centred = rows - rows.mean(0)
    values, directions = torch.linalg.eigh(centred.T @ centred / len(rows))
    values, directions = values.flip(0).clamp_min(0), directions.flip(1)
    if not float(values[0]) > 0:
        raise UserError("All vectors are alike: there is nothing to decompose")
    return DataStatistics(
        width=rows.shape[1],
        spectrum_exponent=spectrum_exponent(values),
        participation=float(values.sum().square() / values.square().sum()),
        intrinsic=two_nn(rows[:NEIGHBOURS], among=rows),
        tails=tuple(float(values[rank:].sum() / values.sum()) for rank in TAIL_RANKS),
        kurtosis=_kurtosis(centred @ directions, values),
        token_entropy=None if tokens is None else token_entropy(tokens),
    )


def spectrum_exponent(values: Float[Tensor, " width"]) -> float:
    """Negative slope of log eigenvalue against log rank over the first half of the ranks."""
    kept = values[: max(2, len(values) // 2)].clamp_min(1e-12 * float(values[0]))
    return -slope(torch.arange(1, len(kept) + 1).double().log(), kept.log())


def two_nn(
    vectors: Float[Tensor, "rows width"],
    *,
    among: Float[Tensor, "all width"] | None = None,
    discard: float = 0.1,
) -> float:
    """Dimension of the manifold that vectors lie on, from each one's two nearest neighbours.

    The ratio m of the second distance to the first has P(m > t) = t^-d on any manifold of
    dimension d; d is the slope of -log(1 - F(m)) against log m through the origin, without the
    share `discard` of the largest ratios (Facco et al. 2017). Vectors equal to another are
    skipped. `among` gives more vectors to look for neighbours in and must hold `vectors`.
    """
    vectors, among = vectors.double(), (vectors if among is None else among).double()
    nearest = []
    for part in vectors.split(512):
        distance = torch.cdist(part, among)
        nearest.append(distance.topk(3, dim=1, largest=False).values)
    found = torch.cat(nearest)
    # The nearest one is the vector itself, up to rounding; twins have no ratio.
    real = found[:, 1] > 1e-5 * found[:, 2].clamp_min(1e-12)
    ratio = (found[real, 2] / found[real, 1]).log().sort().values
    if len(ratio) < 16:
        return float("nan")
    kept = ratio[: int(len(ratio) * (1 - discard))]
    share = torch.arange(1, len(kept) + 1).double() / len(ratio)
    against = -torch.log1p(-share)
    return float((kept * against).sum() / kept.square().sum())


def token_entropy(tokens: Int[Tensor, "..."]) -> float:
    """Entropy of how often each token occurs, in bits."""
    count = torch.bincount(tokens.flatten().long()).double()
    share = count[count > 0] / count.sum()
    return float(-(share * share.log2()).sum())


def zipf_exponent(frequency: Float[Tensor, " features"] | Int[Tensor, " features"]) -> float:
    """Power with which frequencies fall with their rank; what never occurs is left out.

    Ranks are weighted by 1 / rank, so that every octave of ranks counts alike and the rare end,
    where counts are few, does not decide.
    """
    seen = frequency[frequency > 0].double().sort(descending=True).values
    if len(seen) < 2:
        return float("nan")
    rank = torch.arange(1, len(seen) + 1).double()
    return -slope(rank.log(), seen.log(), weight=1 / rank)


def slope(
    x: Float[Tensor, " points"],
    y: Float[Tensor, " points"],
    weight: Float[Tensor, " points"] | None = None,
) -> float:
    """Slope of the straight line through points, by weighted least squares."""
    w = torch.ones_like(x) if weight is None else weight
    w = w / w.sum()
    dx = x - (w * x).sum()
    return float((w * dx * y).sum() / (w * dx.square()).sum())


def _kurtosis(scores: Tensor, values: Tensor) -> float:
    used = values > 1e-9 * values[0]
    standard = scores[:, used] / values[used].sqrt()
    excess = standard.pow(4).mean(0) - 3
    found = float((excess * values[used]).sum() / values[used].sum())
    return found if math.isfinite(found) else 0.0
