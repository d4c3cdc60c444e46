"""Sparse codes: which latents are active in each row, and how strongly; ragged, never dense.

The layout is that of a CSR matrix: the entries of row r are `latent[offsets[r] : offsets[r + 1]]`.
Every dictionary, trained or classical, speaks it, so whatever measures one measures all.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.kernels.native import calls as native
from unweave.errors import UserError


class ByLatent(NamedTuple):
    """The entries of a code put in the order of latents, for ragged sums over latents."""

    order: Int[Tensor, " active"]
    """Place of each entry in the code."""
    row: Int[Tensor, " active"]
    """Row of each entry."""
    bounds: Int[Tensor, " latents+1"]
    """Where each latent's entries begin, and the last one's end."""


class Support:
    """Which latents are active in each row, without their strengths."""

    def __init__(
        self, offsets: Int[Tensor, " ends"], latent: Int[Tensor, " active"], n_latents: int
    ) -> None:
        self.offsets, self.latent, self.n_latents = offsets, latent, n_latents

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.offsets) - 1

    @cached_property
    def row(self) -> Int[Tensor, " active"]:
        """Row of each entry."""
        counts = self.offsets.diff()
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    @cached_property
    def by_latent(self) -> ByLatent:
        """The entries ordered by latent, rows ascending within one; sorted once and kept."""
        if self.latent.device.type == "cpu" and native.able():
            return ByLatent(*native.by_latent(self.latent, self.offsets, self.n_latents))
        # Elsewhere numbers are sorted by radix: half as long ones in half the passes.
        key = self.latent if self.latent.device.type == "cpu" else self.latent.int()
        latent, order = key.sort(stable=True)
        wanted = torch.arange(self.n_latents + 1, device=latent.device, dtype=latent.dtype)
        return ByLatent(order, self.row[order], torch.searchsorted(latent, wanted))

    @classmethod
    def from_topk(cls, latent: Int[Tensor, "rows k"], n_latents: int) -> "Support":
        """The same number of active latents in every row."""
        rows, k = latent.shape
        offsets = torch.arange(0, rows * k + 1, k, device=latent.device)
        return cls(offsets, latent.reshape(-1), n_latents)

    @classmethod
    def from_mask(cls, active: Tensor) -> "Support":
        """The true places of a `[rows, latents]` mask."""
        row, latent = active.nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(active))
        return cls(_ends(counts), latent, active.shape[1])


class SparseCode(NamedTuple):
    """Active latents with their strengths."""

    support: Support
    """Which are active."""
    value: Float[Tensor, " active"]
    """Strength of each entry of the support; may be negative where a dictionary allows signs."""

    @property
    def n_latents(self) -> int:
        """Width of the dictionary."""
        return self.support.n_latents

    def dense(self) -> Float[Tensor, "rows latents"]:
        """As a matrix, for tests and small dictionaries."""
        shape = self.support.rows, self.support.n_latents
        out = self.value.new_zeros(shape)
        return out.index_put((self.support.row, self.support.latent), self.value, accumulate=True)

    def l0(self) -> float:
        """Mean number of latents per row that are not zero."""
        return (self.value != 0).sum().item() / max(self.support.rows, 1)

    def fired(self) -> Tensor:
        """Per latent, in how many rows it is not zero."""
        return torch.bincount(self.support.latent[self.value != 0], minlength=self.n_latents)

    @classmethod
    def from_dense(cls, activations: Float[Tensor, "rows latents"]) -> "SparseCode":
        """The entries of a matrix that are not zero."""
        support = Support.from_mask(activations != 0)
        return cls(support, activations[support.row, support.latent])

    @classmethod
    def from_topk(
        cls, latent: Int[Tensor, "rows k"], value: Float[Tensor, "rows k"], n_latents: int
    ) -> "SparseCode":
        """The same number of entries in every row, zeros among them allowed."""
        return cls(Support.from_topk(latent, n_latents), value.reshape(-1))

    @classmethod
    def cat(cls, codes: "Sequence[SparseCode]") -> "SparseCode":
        """Codes of one dictionary for rows that follow one another."""
        counts = torch.cat([code.support.offsets.diff() for code in codes])
        latent = torch.cat([code.support.latent for code in codes])
        support = Support(_ends(counts), latent, codes[0].n_latents)
        return cls(support, torch.cat([code.value for code in codes]))

    def between(self, start: int, stop: int) -> "SparseCode":
        """The rows `start` to `stop`, in the order of a slice."""
        offsets = self.support.offsets[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        support = Support(offsets - offsets[0], self.support.latent[entries], self.n_latents)
        return SparseCode(support, self.value[entries])


@runtime_checkable
class Coder(Protocol):
    """Whatever can be measured as a dictionary: trained, classical or the network's own neurons."""

    @property
    def n_latents(self) -> int:
        """Width of the code."""
        ...

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """Code of raw site vectors; no gradients."""
        ...

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What a code stands for, in the raw units of the output site."""
        ...

    def directions(self) -> Float[Tensor, "latents d_out"]:
        """What one unit of each latent writes, for recovery metrics; not normalised."""
        ...


def of_width(x: Float[Tensor, "rows d_in"], width: int, reader: str) -> Tensor:
    """The vectors themselves; `reader` says who reads them.

    Raises:
        UserError: they are not of the width that the reader reads.
    """
    if x.shape[-1] != width:
        raise UserError(
            f"{reader} reads vectors of width {width}, not {x.shape[-1]}: give"
            " it the vectors of its own site"
        )
    return x


def _ends(counts: Int[Tensor, " rows"]) -> Int[Tensor, " rows+1"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
