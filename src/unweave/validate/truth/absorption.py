"""Absorption: a parent's latent is silent because a child's latent writes the parent too.

Silence alone is no absorption: a dictionary of k latents per row has to leave something out where
more is present, and a parent with its child is more. Chanin et al. 2024 ("A is for Absorption")
therefore ask for the other half: that something else writes the parent's direction in its place.
Where truth is known this needs no probe and no chosen latents:

    s_p                                      true strength of the parent p in a row
    m_p = x^ . d_p                           what is written along p; not by p's latent i if silent
    c_p = (sum_{g != p} s_g d_g) . d_p       what all but p truly contribute along p
    taken over:  i is silent and (m_p - c_p) / s_p >= 0.4

0.4 is the share that SAEBench (Karvonen et al. 2025) asks of absorbing latents.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.dictionaries.kernels.ragged import over_latents
from unweave.validate.protocols.protocol import Refused
from unweave.validate.recovery import BAR

SHARE = 0.4
"""Of a parent's strength, what others have to write for it to count as taken over."""


class Absorption(NamedTuple):
    """Means over parents that have a latent; every pair is the same thing with and without a child.

    Absorption is `taken_over` less `taken_over_alone`.
    """

    parents: int
    """Parents that have a latent above the bar."""
    silent: float
    """Share of rows with the parent and a child of it in which the parent's latent is silent."""
    silent_alone: float
    """The same in rows with the parent and none of its children."""
    taken_over: float
    """Share of rows with a child in which it is silent and other latents write the parent."""
    taken_over_alone: float
    """The same in rows without: chance, as nothing is there that could absorb."""


@torch.no_grad()
def measure_absorption(
    coder: Coder,
    directions: Float[Tensor, "features d"],
    x: Float[Tensor, "rows d"],
    truth: SparseCode,
    parents: Int[Tensor, " features"],
    *,
    bar: float = BAR,
    batch: int = 4096,
) -> Absorption:
    """Hold a coder to a planted hierarchy; a parent's latent is the one closest to it.

    Raises:
        Refused: no feature has a parent, or no parent has a latent above the bar.
    """
    wanted = parents[parents >= 0].unique()
    if not len(wanted):
        raise Refused("absorption means nothing here: no feature of this world has a parent")
    code = SparseCode.cat([coder.encode(rows) for rows in x.split(batch)])
    latent, closeness = _closest(coder, code, directions[wanted])
    kept = closeness > bar
    if not kept.any():
        raise Refused(
            f"absorption cannot be measured: none of the {len(wanted)} parents has a latent with a"
            f" cosine above {bar}, so there is none that could fall silent"
        )
    wanted, latent = wanted[kept], latent[kept]
    strength, own = _columns(truth, wanted), _columns(code, latent)
    along = directions[wanted]
    parts = [code.between(at, min(at + batch, len(x))) for at in range(0, len(x), batch)]
    written = torch.cat([coder.decode(part) @ along.T for part in parts])
    truly = over_latents(truth.value, directions, truth.support) @ along.T - strength
    present, silent = strength > 0, own == 0
    over = silent & ((written - truly) >= SHARE * strength)
    child = torch.stack([_any_of(truth, parents == p) for p in wanted], 1)
    return Absorption(
        len(wanted),
        _share(silent, present & child),
        _share(silent, present & ~child),
        _share(over, present & child),
        _share(over, present & ~child),
    )


def _closest(
    coder: Coder, code: SparseCode, directions: Tensor
) -> tuple[Int[Tensor, " parents"], Float[Tensor, " parents"]]:
    cosine = directions @ F.normalize(coder.directions(), dim=1).T
    closeness = cosine.abs() if bool((code.value < 0).any()) else cosine
    closeness = torch.where(code.fired() > 0, closeness, -1.0)
    best = closeness.max(1)
    return best.indices, best.values


def _columns(code: SparseCode, wanted: Int[Tensor, " n"]) -> Float[Tensor, "rows n"]:
    """Some latents' values, as a matrix; the same latent may be wanted twice."""
    names, place = wanted.unique(return_inverse=True)
    column_of = wanted.new_full((code.n_latents,), -1)
    column_of[names] = torch.arange(len(names), device=wanted.device)
    column = column_of[code.support.latent]
    kept = column >= 0
    out = code.value.new_zeros(code.support.rows, len(names))
    out[code.support.row[kept], column[kept]] = code.value[kept]
    return out[:, place]


def _any_of(code: SparseCode, chosen: Bool[Tensor, " features"]) -> Bool[Tensor, " rows"]:
    there = torch.zeros(code.support.rows, dtype=torch.bool, device=chosen.device)
    there[code.support.row[chosen[code.support.latent] & (code.value != 0)]] = True
    return there


def _share(what: Bool[Tensor, "rows n"], where: Bool[Tensor, "rows n"]) -> float:
    """Mean over columns of the share of `where` at which `what` holds."""
    return ((what & where).sum(0) / where.sum(0)).nanmean().item()
