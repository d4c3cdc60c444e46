"""Which frequencies a network for modular addition computes with, and what each is worth.

The real Fourier basis over residues: the constant, and for every frequency k from 1 to (p - 1) / 2
the two unit vectors that go as cos and sin of 2 pi k a / p. A table with one row for each residue
has a share of its variance in each frequency; a vector site has, for each frequency of a + b, a
plane in which it turns.
"""

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.validate.truth.planes import orthonormal
from unweave.validate.worlds.modular import ModularNetwork, all_pairs

MOST = 0.9
"""Share of the variance that makes frequencies the key ones."""


class Spectrum(NamedTuple):
    """How tables spread over the frequencies."""

    share: Float[Tensor, " frequencies"]
    """Share of their variance over residues; entry i is frequency i + 1."""
    key: tuple[int, ...]
    """The fewest frequencies that hold `MOST` of the variance, strongest first."""
    effective: float
    """1 / sum of squared shares: how many frequencies there are to speak of; for a random table
    nearly all of them."""


def fourier_basis(p: int) -> Float[Tensor, "waves p"]:
    """cos and sin rows of frequency 1, then of 2 and so on; unit length, p odd."""
    turn = 2 * math.pi * torch.arange(p, dtype=torch.float64) / p
    k = torch.arange(1, (p - 1) // 2 + 1, dtype=torch.float64)[:, None]
    rows = torch.stack([(k * turn).cos(), (k * turn).sin()], 1).flatten(0, 1)
    return math.sqrt(2 / p) * rows


def spectrum(tables: Sequence[Float[Tensor, "p width"]]) -> Spectrum:
    """Of tables with one row for each residue, taken together."""
    power = torch.zeros((len(tables[0]) - 1) // 2, dtype=torch.float64)
    for table in tables:
        power += (fourier_basis(len(table)) @ table.double()).square().sum(1).view(-1, 2).sum(1)
    share = power / power.sum().clamp_min(1e-300)
    held, order = share.sort(descending=True)
    few = int((held.cumsum(0) < MOST - 1e-9).sum()) + 1
    key = tuple((order[:few] + 1).tolist())
    return Spectrum(share.float(), key, (1 / share.square().sum()).item())


def embedding_spectrum(model: ModularNetwork) -> Spectrum:
    """Of a network's embedding."""
    return spectrum([model.E.weight])


@torch.no_grad()
def sum_planes(
    vectors: Float[Tensor, "pairs width"], p: int, frequencies: Sequence[int]
) -> Float[Tensor, "planes 2 width"]:
    """For each frequency the plane in which a site turns with a + b; `vectors` at `all_pairs`."""
    total = all_pairs(p).sum(1) % p
    mean = torch.zeros(p, vectors.shape[1], dtype=torch.float64)
    mean = mean.index_add_(0, total, vectors.double()) / p
    return _planes(mean, p, frequencies)


def table_planes(
    table: Float[Tensor, "p width"], frequencies: Sequence[int]
) -> Float[Tensor, "planes 2 width"]:
    """For each frequency the plane in which a table turns with its residue."""
    return _planes(table.double(), len(table), frequencies)


@torch.no_grad()
def without_frequencies(model: ModularNetwork, frequencies: Sequence[int]) -> ModularNetwork:
    """The network with these frequencies taken out of its embedding."""
    rows = fourier_basis(model.p)[_rows_of(frequencies)]
    changed = copy.deepcopy(model)
    table = changed.E.weight
    table.data -= (rows.T @ (rows @ table.double())).float()
    return changed


@torch.no_grad()
def margin(model: ModularNetwork, answer: Int[Tensor, " pairs"]) -> float:
    """Mean of the right logit less the highest other one, over the logits' standard deviation."""
    logits = model(all_pairs(model.p))
    right = logits.gather(1, answer[:, None])[:, 0]
    others = logits.scatter(1, answer[:, None], -torch.inf).amax(1)
    return ((right - others).mean() / logits.std().clamp_min(1e-9)).item()


def _planes(table: Tensor, p: int, frequencies: Sequence[int]) -> Tensor:
    turning = fourier_basis(p)[_rows_of(frequencies)] @ table
    return torch.stack([orthonormal(pair) for pair in turning.view(-1, 2, table.shape[1])]).float()


def _rows_of(frequencies: Sequence[int]) -> list[int]:
    return [2 * (k - 1) + part for k in frequencies for part in (0, 1)]
