"""What is measured: coders that stand in the network together, with strengths that have no sign."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.artifact.measurements import Kind
from unweave.dictionaries.code import Coder, SparseCode, Support
from unweave.dictionaries.kernels.ragged import write
from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.validate.placed import Placed


class Method(NamedTuple):
    """One way to take a place, or all of a network, apart."""

    name: str
    """As tables show it."""
    kind: Kind
    """What it is."""
    parts: tuple[Placed, ...]
    """Coders that stand in the network together, in the order of computation."""
    note: str = ""
    """What it is, in a sentence."""
    edges: int = 0
    """Edges of an interaction graph that belong to the description."""

    @property
    def writes(self) -> tuple[str, ...]:
        """Every site written."""
        return tuple(dict.fromkeys(site for part in self.parts for site in part.writes))


class TwoSided:
    """A coder with signs as one without: +z of latent i is latent i, -z is latent i + n."""

    def __init__(self, coder: Coder) -> None:
        self._coder, self._n = coder, coder.n_latents

    @property
    def n_latents(self) -> int:
        """Twice those of the coder."""
        return 2 * self._n

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """Sizes, at the latent of their sign."""
        support, value = self._coder.encode(x)
        latent = support.latent + self._n * (value < 0)
        return SparseCode(Support(support.offsets, latent, 2 * self._n), value.abs())

    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What the coder writes for the signed code."""
        latent = code.support.latent
        below = latent >= self._n
        support = Support(code.support.offsets, latent - self._n * below, self._n)
        return self._coder.decode(SparseCode(support, torch.where(below, -code.value, code.value)))

    def directions(self) -> Float[Tensor, "latents d_out"]:
        """Both ways along every direction."""
        rows = self._coder.directions()
        return torch.cat([rows, -rows])


class PartCoder:
    """A part of a decompiled network as a coder."""

    def __init__(self, part: Part) -> None:
        self.part = part

    @property
    def n_latents(self) -> int:
        """Latents of the part."""
        return self.part.spec.n_latents

    @property
    def needs_input(self) -> bool:
        """Whether it has a linear map beside its latents."""
        return self.part.W_skip is not None

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows d_out"]:
        """The part's output."""
        return self.part(x)

    def encode(self, x: Float[Tensor, "rows d_in"]) -> SparseCode:
        """The part's code."""
        latent, value = self.part.encode(x)
        return SparseCode.from_topk(latent, value, self.n_latents)

    @torch.no_grad()
    def decode(self, code: SparseCode) -> Float[Tensor, "rows d_out"]:
        """What a code writes, in raw units.

        Raises:
            UserError: the part has a linear map beside its latents.
        """
        if self.needs_input:
            raise UserError(f"{self.part.spec.name} needs its input as well as the code to decode")
        part = self.part
        return (write(code.value, part.W_dec, code.support) + part.b_dec) / part.spec.output_scale

    @torch.no_grad()
    def directions(self) -> Float[Tensor, "latents d_out"]:
        """What one unit of each latent writes, in raw units."""
        return self.part.W_dec.detach() / self.part.spec.output_scale


def sideless(method: Method, signed: Sequence[str]) -> Method:
    """The method with the coders of these names made two-sided."""
    parts = tuple(
        part._replace(coder=TwoSided(part.coder)) if part.name in signed else part
        for part in method.parts
    )
    return method._replace(parts=parts)
