"""Greedy codes of vectors in a fixed dictionary: one more atom a step, k steps.

Every step takes the atom most correlated with what is still missing, j = argmax d_j . r with
r = x - sum_S c_i d_i (of |d_j . r| where values may be negative), and then differs:

    matching pursuit     c_j += d_j . r                                (Mallat & Zhang 1993)
    gradient pursuit     c_S += a g,  g = D_S r,  a = |g|^2 / |g D_S|^2 (Blumensath & Davies 2008)
    OMP                  c_S  = least squares on S                     (Pati et al. 1993)

With "inference-time optimisation" one compares dictionaries apart from their encoders (Smith et
al. 2024). Values are never negative unless `signed`: gradient pursuit then clamps them and OMP
solves the non-negative problem. Atoms may have any norm; they compete as unit vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.coders.refit import TILE_ROWS, least_squares, ragged, unit_rows
from unweave.errors import UserError

GRAM_LATENTS = 8192
"""Up to this width all products of atoms are kept (256 MB): a step then adds up a few rows of them
instead of multiplying by the dictionary. OMP with k = 32, 4608 atoms of 576 numbers and 1024 rows:
1.7 s instead of 3.4 s on one core. With few rows they are not worth their making."""
_FLOOR = 32
"""A row is done when nothing correlates with its rest by this many machine epsilons of it."""

Budget = int | Int[Tensor, " rows"]


def matching_pursuit(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    k: Budget,
    *,
    signed: bool = False,
) -> SparseCode:
    """At most k latents a row: an atom that is chosen twice adds to the same latent.

    `k` may be one number or one a row.
    """
    return _pursue(x, W_dec, k, _project, signed=signed)


def gradient_pursuit(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    k: Budget,
    *,
    signed: bool = False,
) -> SparseCode:
    """Between the other two in price and error; `k` as there."""
    return _pursue(x, W_dec, k, _descend, signed=signed)


def orthogonal_matching_pursuit(
    x: Float[Tensor, "rows d"],
    W_dec: Float[Tensor, "latents d"],
    k: Budget,
    *,
    signed: bool = False,
) -> SparseCode:
    """The rest is orthogonal to every chosen atom, so that none is chosen twice; `k` as there.

    Finds a planted code of k atoms exactly if k < (1 + 1/m) / 2 for the largest cosine m between
    two atoms (Tropp 2004).
    """
    return _pursue(x, W_dec, k, _solve, signed=signed)


class _Chosen(NamedTuple):
    """The support of a tile of rows so far."""

    gram: Float[Tensor, "rows s s"]
    """Products of chosen atoms; zero where a place is unused."""
    target: Float[Tensor, "rows s"]
    """Products of chosen atoms with the row."""
    value: Float[Tensor, "rows s"]
    used: Bool[Tensor, "rows s"]
    latest: Int[Tensor, "rows 1"]
    """Place of the atom chosen in this step."""
    live: Bool[Tensor, "rows 1"]
    """Whether one was chosen at all."""

    def slope(self) -> Float[Tensor, "rows s"]:
        """Correlation of the chosen atoms with the rest."""
        return self.target - (self.gram @ self.value[..., None])[..., 0]


_Update = Callable[[_Chosen, bool], Tensor]


def _project(chosen: _Chosen, signed: bool) -> Tensor:
    grown = chosen.slope().gather(1, chosen.latest) * chosen.live
    return chosen.value.scatter_add(1, chosen.latest, grown)


def _descend(chosen: _Chosen, signed: bool) -> Tensor:
    g = chosen.slope() * chosen.live
    moved = (g * (chosen.gram @ g[..., None])[..., 0]).sum(1, keepdim=True)
    value = chosen.value + g * (g.square().sum(1, keepdim=True) / moved.clamp_min(1e-30))
    return value if signed else value.clamp_min(0)


def _solve(chosen: _Chosen, signed: bool) -> Tensor:
    return least_squares(chosen.gram, chosen.target, chosen.used, chosen.value, signed=signed)


class _Atoms:
    """A dictionary of unit rows and, where they are worth their room, their products."""

    def __init__(self, unit: Float[Tensor, "latents d"], picks: int) -> None:
        self.unit = unit
        self.gram = unit @ unit.T if len(unit) <= min(GRAM_LATENTS, picks) else None

    def correlation(self, x: Tensor, first: Tensor, latent: Tensor, value: Tensor) -> Tensor:
        """Of every atom with the rest of every row; `first` is that with the whole rows."""
        if not latent.shape[1]:
            return first
        if self.gram is None:
            return (x - _sum(latent, self.unit, value)) @ self.unit.T
        return first - _sum(latent, self.gram, value)

    def products(self, latent: Int[Tensor, "rows s"]) -> Float[Tensor, "rows s s"]:
        """Of a row's chosen atoms with one another."""
        if self.gram is None:
            atoms = self.unit[latent]
            return atoms @ atoms.mT
        return self.gram[latent[:, :, None], latent[:, None, :]]


def _sum(latent: Tensor, rows: Tensor, value: Tensor) -> Tensor:
    return F.embedding_bag(latent, rows, per_sample_weights=value, mode="sum")


@torch.no_grad()
def _pursue(x: Tensor, W_dec: Tensor, k: Budget, update: _Update, *, signed: bool) -> SparseCode:
    if isinstance(k, int) and k < 1:
        raise UserError(f"a pursuit needs at least one step a row; k is {k}")
    budget = torch.as_tensor(k, device=x.device).expand(len(x))
    steps = int(budget.max()) if len(x) and len(W_dec) else 0
    norm, unit = unit_rows(W_dec)
    atoms = _Atoms(unit, len(x) * steps)
    latent = torch.zeros(len(x), steps, dtype=torch.long, device=x.device)
    value = x.new_zeros(len(x), steps)
    for start in range(0, len(x), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        _pursue_tile(x[tile], atoms, budget[tile], latent[tile], value[tile], update, signed)
    return ragged(latent, value / norm[latent], len(W_dec))


def _pursue_tile(
    x: Tensor,
    atoms: _Atoms,
    budget: Tensor,
    latent: Tensor,
    value: Tensor,
    update: _Update,
    signed: bool,
) -> None:
    """Fill `latent` and `value`, `[rows, steps]`, in place."""
    first = x @ atoms.unit.T
    floor = _FLOOR * torch.finfo(x.dtype).eps * x.norm(dim=1)
    used = torch.zeros_like(latent, dtype=torch.bool)
    for step in range(latent.shape[1]):
        rest = atoms.correlation(x, first, latent[:, :step], value[:, :step])
        size, j = (rest.abs() if signed else rest).max(1)
        live = ((size > floor) & (budget > step))[:, None]
        if not live.any():
            return
        before = used & (latent == j[:, None])
        place = torch.where(before.any(1), before.long().argmax(1), step)[:, None]
        latent.scatter_(1, place, torch.where(live, j[:, None], latent.gather(1, place)))
        used.scatter_(1, place, live | used.gather(1, place))
        s = slice(step + 1)
        both = used[:, s, None] & used[:, None, s]
        chosen = _Chosen(
            gram=atoms.products(latent[:, s]) * both,
            target=first.gather(1, latent[:, s]) * used[:, s],
            value=value[:, s],
            used=used[:, s],
            latest=place,
            live=live,
        )
        value[:, s] = update(chosen, signed)
