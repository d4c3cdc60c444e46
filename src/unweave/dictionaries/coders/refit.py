"""Least squares on a chosen support: what the values of a code should have been.

    c_S = argmin |x - sum_{i in S} c_i d_i|^2          (signed)
    c_S = argmin of the same over c_S >= 0             (otherwise; Lawson & Hanson 1974, ch. 23)

All rows are solved at once. A row's support takes at most k places of a padded `[rows, k]` table;
places that it does not use become rows of the identity, so that every system has the same size.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.dictionaries.code import SparseCode, Support

TILE_ROWS = 512
"""Rows worked on at once: with 32 atoms of 576 numbers each, 38 MB."""
_RIDGE = 16
"""Times machine epsilon, on unit atoms: keeps systems of nearly parallel atoms solvable."""


@torch.no_grad()
def debias(
    code: SparseCode,
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    *,
    signed: bool = False,
) -> SparseCode:
    """The code with its values refitted on its own support, which removes shrinkage.

    `x` is what `W_dec` alone should add up to: an offset has been taken from it. Without `signed`,
    entries that are better off at zero leave the support.
    """
    norm, unit = unit_rows(W_dec)
    latent, value, used = padded(code)
    value = value * norm[latent]
    parts = []
    for start in range(0, len(x), TILE_ROWS):
        rows = slice(start, start + TILE_ROWS)
        atoms = unit[latent[rows]]
        gram, target = atoms @ atoms.mT, (atoms @ x[rows, :, None])[..., 0]
        parts.append(least_squares(gram, target, used[rows], value[rows], signed=signed))
    fitted = torch.cat(parts) if parts else value
    return ragged(latent, fitted / norm[latent], len(W_dec))


def least_squares(
    gram: Float[Tensor, "rows k k"],
    target: Float[Tensor, "rows k"],
    used: Bool[Tensor, "rows k"],
    start: Float[Tensor, "rows k"],
    *,
    signed: bool,
) -> Float[Tensor, "rows k"]:
    """Best values of the used places, zero elsewhere, from the atoms' products with one another
    and with the row. Without `signed` no value is negative and the search begins at `start`.
    """
    ridge = _RIDGE * torch.finfo(gram.dtype).eps
    wide, wanted = gram.double(), target.double()
    if signed:
        return _solve(wide, wanted, used, ridge).to(gram.dtype)
    value = start.double().clamp_min(0) * used
    free = used & (value > 0)
    tolerance = ridge * target.double().abs().amax(1, keepdim=True)
    for _ in range(3 * used.shape[1] + 1):
        value, free = _walk(wide, wanted, value, free, ridge)
        slope = wanted - (wide @ value[..., None])[..., 0]
        slope = slope.masked_fill(free | ~used, -torch.inf)
        best = slope.argmax(1, keepdim=True)
        opened = slope.gather(1, best) > tolerance
        if not opened.any():
            break
        free = free.scatter(1, best, free.gather(1, best) | opened)
    return value.to(gram.dtype)


def _walk(
    gram: Tensor, target: Tensor, value: Tensor, free: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Go to the optimum of the free places, fixing at zero whichever reaches zero on the way."""
    for _ in range(free.shape[1] + 1):
        wanted = _solve(gram, target, free, ridge)
        blocked = free & (wanted <= 0)
        if not blocked.any():
            return wanted, free
        share = value / (value - wanted).clamp_min(1e-300)
        share = share.masked_fill(~blocked, 1.0)
        step = share.amin(1, keepdim=True)
        free = free & ~(blocked & (share <= step))
        value = (value + step * (wanted - value)) * free
    return value, free


def _solve(gram: Tensor, target: Tensor, free: Tensor, ridge: float) -> Tensor:
    system = gram * (free[:, :, None] & free[:, None, :])
    system.diagonal(dim1=1, dim2=2).add_(torch.where(free, ridge, 1.0))
    factor = torch.linalg.cholesky_ex(system).L
    return torch.cholesky_solve((target * free)[..., None], factor)[..., 0]


def padded(
    code: SparseCode,
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"], Bool[Tensor, "rows k"]]:
    """Latents, values and which places are used, with as many places as the fullest row needs."""
    support, value = code
    counts = support.offsets.diff()
    width = int(counts.max()) if len(counts) else 0
    place = torch.arange(len(value), device=value.device) - support.offsets[support.row]
    shape = support.rows, width
    used = torch.zeros(shape, dtype=torch.bool, device=value.device)
    latents = torch.zeros(shape, dtype=torch.long, device=value.device)
    used[support.row, place] = True
    latents[support.row, place] = support.latent
    return latents, value.new_zeros(shape).index_put((support.row, place), value), used


def ragged(
    latent: Int[Tensor, "rows k"], value: Float[Tensor, "rows k"], n_latents: int
) -> SparseCode:
    """The places whose values are not zero, as a code."""
    used = value != 0
    counts = used.sum(1)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseCode(Support(offsets, latent[used], n_latents), value[used])


def unit_rows(
    rows: Float[Tensor, "latents d"],
) -> tuple[Float[Tensor, " latents"], Float[Tensor, "latents d"]]:
    """Norms, never zero, and the rows divided by them."""
    norm = rows.norm(dim=1).clamp_min(torch.finfo(rows.dtype).tiny)
    return norm, rows / norm[:, None]
