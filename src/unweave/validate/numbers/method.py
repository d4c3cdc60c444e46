"""What is measured: coders that stand in the network together, with strengths that have no sign."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.artifact.measurements import Kind
from unweave.describe.claims import Claim
from unweave.dictionaries.code import Coder, SparseCode, Support
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
    claims: Mapping[str, Sequence[Claim]] | None = None
    """What is said of each part's latents already; None where they are still to be described."""

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
        return two_sided(self._coder.encode(x))

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


def two_sided(code: SparseCode) -> SparseCode:
    """A code with signs as the code of `TwoSided`."""
    support, value = code
    latent = support.latent + support.n_latents * (value < 0)
    return SparseCode(Support(support.offsets, latent, 2 * support.n_latents), value.abs())


def sideless(method: Method, signed: Sequence[str]) -> Method:
    """The method with the coders of these names made two-sided."""
    parts = tuple(
        part._replace(coder=TwoSided(part.coder)) if part.name in signed else part
        for part in method.parts
    )
    return method._replace(parts=parts)
