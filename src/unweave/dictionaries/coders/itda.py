"""Inference-time decomposition of activations (Leask, Nanda & Al Moubayed 2025, 2505.17769).

The atoms are activations themselves, so each says where it came from. Vectors are read batch by
batch and coded by a pursuit in the atoms so far; one that is left with more than `tau` of its
squared norm becomes an atom:

    |x - x^|^2 > tau |x|^2   =>   append x / |x|

Two things the published code leaves open. Rows of a batch that fail together are often alike, and
at first all of them fail. So a quarter of them at most become atoms at a time (and no more than
there are atoms, and none that another one brings within tau), and the others are coded anew: nearly
what batches of one row would do, at the price of large ones. And a pursuit in more atoms can be
worse for a vector than in fewer, so passes are repeated until one adds nothing: then tau holds for
every vector.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.dictionaries.coders.fixed import FixedDictionary
from unweave.dictionaries.coders.pursuit import orthogonal_matching_pursuit
from unweave.dictionaries.coders.refit import unit_rows


class ITDASettings(BaseModel):
    """When an activation becomes an atom."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    k: PositiveInt
    """Atoms that code one row."""
    tau: float = Field(gt=0, lt=1)
    """Share of a row's squared norm that may be left over; it decides how many atoms there are."""
    n_latents: PositiveInt | None = None
    """Most atoms; once they are taken nothing is added and `tau` is no longer kept."""
    batch_rows: PositiveInt = 512
    """Rows coded with the same atoms."""
    sweeps: PositiveInt = 10
    """Passes at most, ending with the first that adds nothing. The paper makes one."""
    signed: bool = True
    """Whether values may be negative; the paper's are."""


class ITDA(FixedDictionary):
    """Unit activations as atoms, coded by OMP, without an offset."""

    def __init__(
        self,
        atoms: Float[Tensor, "latents d"],
        source: Int[Tensor, " latents"],
        settings: ITDASettings,
    ) -> None:
        omp = partial(orthogonal_matching_pursuit, k=settings.k, signed=settings.signed)
        super().__init__(atoms, omp)
        self.source = source
        """Which row of the data each atom is."""
        self.settings = settings

    @property
    def full(self) -> bool:
        """Whether it has as many atoms as it may have."""
        return self.n_latents == self.settings.n_latents

    def left(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, " rows"]:
        """Share of each row's squared norm that its code does not reconstruct."""
        error = (x - self.decode(self.encode(x))).square().sum(1)
        return error / x.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)

    def grown(self, x: Float[Tensor, "rows d"], source: Int[Tensor, " rows"]) -> "ITDA":
        """With the atoms that one batch adds; `source` names its rows."""
        tau, limit, found = self.settings.tau, self.settings.n_latents, self
        failing = found.left(x) > tau
        while failing.any() and not found.full:
            x, source = x[failing], source[failing]
            first = max(1, min(len(x) // 4, found.n_latents))
            if limit is not None:
                first = min(first, limit - found.n_latents)
            unit = unit_rows(x[:first])[1]
            new = _different(unit, tau, signed=self.settings.signed)
            atoms = torch.cat([found.W_dec, unit[new]])
            found = ITDA(atoms, torch.cat([found.source, source[new]]), self.settings)
            failing = found.left(x) > tau
        return found


@torch.no_grad()
def itda(x: Float[Tensor, "rows d"], settings: ITDASettings) -> ITDA:
    """A dictionary of some of the rows; `source` holds their indices in `x`."""
    row = torch.arange(len(x), device=x.device)
    found = ITDA(x[:0], row[:0], settings)
    for _ in range(settings.sweeps):
        before = found.n_latents
        for batch, source in zip(
            x.split(settings.batch_rows), row.split(settings.batch_rows), strict=True
        ):
            if found.full:
                return found
            found = found.grown(batch, source)
        if found.n_latents == before:
            break
    return found


def jaccard(a: ITDA, b: ITDA) -> float:
    """Share of the rows in either dictionary that are in both: how alike two models, layers or
    checkpoints are that read the same tokens, row for row.
    """
    ours, theirs = set(a.source.tolist()), set(b.source.tolist())
    return len(ours & theirs) / max(len(ours | theirs), 1)


def _different(unit: Tensor, tau: float, *, signed: bool) -> Tensor:
    """Indices of rows that none of the rows taken before reconstructs to within tau alone."""
    cosine = unit @ unit.T
    alike = (cosine.abs() if signed else cosine) >= (1 - tau) ** 0.5
    open_ = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    taken = []
    for i in range(len(unit)):
        if open_[i]:
            taken.append(i)
            open_ &= ~alike[i]
    return torch.tensor(taken, dtype=torch.long, device=unit.device)
