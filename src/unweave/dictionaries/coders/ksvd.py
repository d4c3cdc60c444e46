"""MOD and K-SVD: dictionary learning that alternates between codes and atoms, without a gradient.

Codes are found by OMP with k atoms a row. Then, with X the rows and C their codes,

    MOD    D = argmin |X - C D|^2, all atoms at once              (Engan et al. 1999)
    K-SVD  atom after atom: with E the rows that use atom j, without what the other atoms say of
           them, d_j and its values become the best rank-one description of E (Aharon et al. 2006)

The rank-one step is a few power iterations from the atom's own values (Rubinstein et al. 2008 take
one); clamping them makes the non-negative variant. An atom that no row uses, or that is another's
twin, is replaced by the row that is reconstructed worst.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.coders.refit import unit_rows
from unweave.dictionaries.coders.starts import data_rows
from unweave.dictionaries.kernels.ragged import over_rows, write
from unweave.errors import UserError

_POWER_STEPS = 3
_TWIN = 0.99
"""Cosine from which two atoms are one."""
_RIDGE = 1e-6
"""Added to the diagonal of C^T C, in units of its mean: atoms that are always used together."""


class AlternatingSettings(BaseModel):
    """How long and how sparsely to alternate."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_latents: PositiveInt
    """Number of atoms; at most as many as there are rows."""
    k: PositiveInt
    """Atoms that code one row."""
    sweeps: PositiveInt = 20
    """How often codes and atoms are renewed in turn."""
    signed: bool = False
    """Whether values may be negative."""
    seed: int = 0
    """Which rows the atoms start as."""


def ksvd(x: Float[Tensor, "rows d"], settings: AlternatingSettings) -> FixedDictionary:
    """Unit atoms around the mean of the rows, coded by OMP."""
    return _alternate(x, settings, _one_by_one)


def mod(x: Float[Tensor, "rows d"], settings: AlternatingSettings) -> FixedDictionary:
    """The same with all atoms renewed at once: cheaper a sweep, and slower to get anywhere."""
    return _alternate(x, settings, _all_at_once)


_Renew = Callable[[Tensor, Tensor, SparseCode, bool], Tensor]


@torch.no_grad()
def _alternate(x: Tensor, settings: AlternatingSettings, renew: _Renew) -> FixedDictionary:
    if settings.n_latents > len(x):
        raise UserError(
            f"{settings.n_latents} atoms cannot start from {len(x)} rows; give more rows"
        )
    mean = x.mean(0)
    rows = x - mean
    omp = partial(orthogonal_matching_pursuit, k=settings.k, signed=settings.signed)
    atoms = data_rows(x, settings.n_latents, seed=settings.seed)
    for _ in range(settings.sweeps):
        code = omp(rows, atoms)
        renewed = renew(rows, atoms, code, settings.signed)
        atoms = _replace_idle(renewed, code, rows, settings.signed)
    return FixedDictionary(atoms, omp, b_dec=mean)


def _all_at_once(x: Tensor, atoms: Tensor, code: SparseCode, signed: bool) -> Tensor:
    support, value = code
    dense = code.dense()
    gram = dense.T @ dense
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean().clamp_min(1e-12))
    return unit_rows(torch.linalg.solve(gram, over_rows(value, x, support)))[1]


def _one_by_one(x: Tensor, atoms: Tensor, code: SparseCode, signed: bool) -> Tensor:
    support, value = code.support, code.value.clone()
    atoms = atoms.clone()
    rest = x - write(value, atoms, support)
    at = support.by_latent
    for j, (start, end) in enumerate(pairwise(at.bounds.tolist())):
        if start == end:
            continue
        users, entries = at.row[start:end], at.order[start:end]
        E = rest[users] + value[entries, None] * atoms[j]
        c = value[entries]
        for _ in range(_POWER_STEPS):
            d = c @ E
            d = d / d.norm().clamp_min(1e-12)
            c = E @ d if signed else (E @ d).clamp_min(0)
        atoms[j], value[entries] = d, c
        rest[users] = E - c[:, None] * d
    return atoms


def _replace_idle(atoms: Tensor, code: SparseCode, x: Tensor, signed: bool) -> Tensor:
    cosine = atoms @ atoms.T
    twin = ((cosine.abs() if signed else cosine) > _TWIN).triu(1).any(0)
    idle = ((code.fired() == 0) | twin).nonzero()[:, 0]
    if not len(idle):
        return atoms
    error = (x - write(code.value, atoms, code.support)).square().sum(1)
    worst = error.topk(len(idle)).indices
    return atoms.index_put((idle,), unit_rows(x[worst])[1])
