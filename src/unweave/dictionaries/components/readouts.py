"""What a decomposition into parameter components found, beside what the weights hold.

For a network whose true mechanisms are the columns of its weights (one a feature):

    MMCS = mean over features j of max over c of cos(U_c V_c,j , W_:,j)
    ML2R = mean over features j of |U_c V_c,j| / |W_:,j| at that c

MMCS near 1: the directions are there. ML2R near 1: each in one piece and at full length (APD's
.89 to .94 is shrinkage; many small pieces of one direction also give less than 1). In few output
dimensions MMCS alone says little: a handful of random directions reaches .9 in two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Recovery(NamedTuple):
    """How well pieces match the columns of a matrix."""

    mmcs: float
    """Mean over columns of the largest cosine with a piece's column."""
    ml2r: float
    """Mean over columns of that piece's length over the column's."""


def recovery(
    U: Float[Tensor, "components d_out"],
    V: Float[Tensor, "components d_in"],
    weight: Float[Tensor, "d_out d_in"],
    *,
    features: Float[Tensor, "features d_in"] | None = None,
    alive: Bool[Tensor, " components"] | None = None,
) -> Recovery:
    """Match the pieces U_c V_c^T with the columns of `weight`.

    `features`: the directions of the layer's input that stand for features; the columns of
    `weight @ features.T` are then what is matched. `alive` leaves the other pieces out.
    """
    read = V if features is None else V @ features.T
    columns = weight if features is None else weight @ features.T
    if alive is not None:
        read, U = read[alive], U[alive]
    if not len(U):
        return Recovery(0.0, 0.0)
    lengths = columns.norm(dim=0)
    along = (U @ columns) / (U.norm(dim=1, keepdim=True) * lengths).clamp_min(1e-12)
    cosine = along * read.sign()
    best, which = cosine.max(dim=0)
    piece = U.norm(dim=1)[which] * read.abs().gather(0, which[None])[0]
    return Recovery(best.mean().item(), (piece / lengths.clamp_min(1e-12)).mean().item())


def svd_pieces(
    weight: Float[Tensor, "d_out d_in"],
) -> tuple[Float[Tensor, "rank d_out"], Float[Tensor, "rank d_in"]]:
    """The baseline without training: U and V of the rank-one pieces of the weights' SVD."""
    left, strength, right = torch.linalg.svd(weight, full_matrices=False)
    return (left * strength).T.contiguous(), right


def alive_components(
    importance: Float[Tensor, "rows components"], *, threshold: float = 0.1
) -> Bool[Tensor, " components"]:
    """Which pieces matter by more than `threshold` for at least one of the inputs."""
    return (importance > threshold).any(dim=0)


class Shares(NamedTuple):
    """How pieces are shared out over features, from each feature shown alone."""

    one_feature: int
    """Pieces that matter for exactly one feature."""
    owned: int
    """Features that have exactly one piece, which matters for no other feature."""
    mean_features: float
    """Features that an alive piece matters for, on average."""


def feature_shares(
    importance: Float[Tensor, "features components"], *, threshold: float = 0.1
) -> Shares:
    """Read the importances of single-feature inputs: row j is feature j shown alone."""
    matters = importance > threshold
    per_piece, per_feature = matters.sum(0), matters.sum(1)
    single = per_piece == 1
    owned = (per_feature == 1) & (matters & single).any(1)
    alive = per_piece[per_piece > 0]
    mean = alive.double().mean().item() if len(alive) else 0.0
    return Shares(int(single.sum()), int(owned.sum()), mean)
