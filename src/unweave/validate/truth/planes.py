"""Features that are planes instead of directions: whether a dictionary has latents that span them.

A feature that turns (a frequency of modular addition, a day of the week) has no direction of its
own: any two independent vectors of its plane do. A latent lies in a plane P when |P w| is near one
for its unit direction w, and latents cover a plane when two that lie in it span it evenly enough.
Latents along several spokes of a plane are as good an answer and are counted apart.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.errors import UserError
from unweave.validate.recovery import BAR, SPURIOUS
from unweave.validate.truth.chance import random_directions_of

CANDIDATES = 16
"""Of a plane's latents, those nearest to it are tried in pairs."""


class Planes(NamedTuple):
    """Latents that fire beside planes of the truth; means over planes unless said otherwise."""

    planes: int
    """Planes of the truth."""
    alive: int
    """Latents that fire."""
    nearest: float
    """Largest |P w| of any latent: the MMCS of planes."""
    angle: float
    """Cosine of the larger principal angle between the plane and the best two latents' span."""
    touched: float
    """Share of planes with a latent above the bar."""
    covered: float
    """Share of planes whose best two latents span a plane with both cosines above the bar."""
    spokes: float
    """Latents above the bar for each plane that is touched: 2 suffice."""
    precision: float
    """Share of latents above the bar for some plane."""
    spurious: int
    """Latents below `SPURIOUS` for every plane."""
    nearest_by_chance: float
    """`nearest` of a random dictionary of as many latents."""
    angle_by_chance: float
    """`angle` of the same."""


def orthonormal(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """An orthonormal basis of what rows span, as many rows; those that add nothing are zero."""
    _, size, basis = torch.linalg.svd(rows, full_matrices=False)
    return basis * (size > 1e-6 * size.max().clamp_min(1e-300))[:, None]


@torch.no_grad()
def measure_planes(
    coder: Coder,
    planes: Float[Tensor, "planes 2 d_out"],
    x: Float[Tensor, "rows d_in"],
    *,
    seed: int = 0,
    batch: int = 4096,
) -> Planes:
    """Hold a coder to planes, each given by two orthonormal rows, on held-out rows.

    Raises:
        UserError: the dictionary writes vectors of another width.
    """
    written = coder.directions()
    if written.shape[1] != planes.shape[2]:
        raise UserError(
            f"Planes of {planes.shape[2]} dimensions need a dictionary that writes as many; this"
            f" one writes {written.shape[1]}"
        )
    code = SparseCode.cat([coder.encode(rows) for rows in x.split(batch)])
    alive = (code.fired() > 0) & (written.norm(dim=1) > 0)
    if not alive.any():
        return Planes(len(planes), 0, 0.0, 0.0, 0.0, 0.0, 0.0, float("nan"), 0, 0.0, 0.0)
    unit = F.normalize(written[alive], dim=1)
    inside = _inside(planes, unit)
    angles = _angles(planes, unit, inside)
    twin = F.normalize(random_directions_of(coder, seed=seed).directions()[alive], dim=1)
    above, best = inside > BAR, inside.amax(0)
    touched = above.any(1)
    by_chance = _inside(planes, twin)
    return Planes(
        len(planes),
        len(unit),
        inside.amax(1).mean().item(),
        angles.mean().item(),
        touched.float().mean().item(),
        (angles > BAR).float().mean().item(),
        above.sum().item() / max(int(touched.sum()), 1),
        above.any(0).float().mean().item(),
        int((best < SPURIOUS).sum()),
        by_chance.amax(1).mean().item(),
        _angles(planes, twin, by_chance).mean().item(),
    )


def _inside(planes: Tensor, unit: Tensor) -> Float[Tensor, "planes latents"]:
    return torch.einsum("ptd,ld->plt", planes, unit).norm(dim=2)


def _angles(planes: Tensor, unit: Tensor, inside: Tensor) -> Float[Tensor, " planes"]:
    """For each plane the largest over pairs of latents of the cosine of the larger angle."""
    found = []
    for plane, near in zip(planes, inside, strict=True):
        rows = unit[near.topk(min(CANDIDATES, len(unit))).indices]
        i, j = torch.triu_indices(len(rows), len(rows), 1)
        if not len(i):
            found.append(rows.new_zeros(()))
            continue
        first, second = rows[i], rows[j]
        second = second - (second * first).sum(1, keepdim=True) * first
        length = second.norm(dim=1, keepdim=True)
        basis = torch.stack([first, second / length.clamp_min(1e-9)], 1)
        cosines = torch.linalg.svdvals(basis @ plane.T)
        # Two latents along one line span no plane.
        found.append(torch.where(length[:, 0] > 0.1, cosines[:, 1], 0.0).amax())
    return torch.stack(found)
