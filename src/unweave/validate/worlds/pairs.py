"""Two planted networks that share some features and not others: what model diffing is tested on.

A feature is present in a row, and so in both networks, unless it is one network's own. Besides
features that both hold alike there are two kinds that crosscoders are known to take for one
network's own: faint ones, which the other network holds at a fraction of the strength, and loose
ones, which are sometimes present in one network alone (Minder, Dumas et al. 2025).
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode
from unweave.validate.worlds.features import DATA, WORLD, seeded, unit_directions

KINDS = ("shared", "faint", "loose", "only_a", "only_b")
"""What a feature can be; its kind is the place in this tuple."""
Kind = Literal["shared", "faint", "loose", "only_a", "only_b"]


class PairSettings(BaseModel):
    """What a pair of networks is like."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    d: PositiveInt = 32
    """Width of the vectors of either."""
    shared: NonNegativeInt = 40
    """Features both hold alike."""
    faint: NonNegativeInt = 12
    """Features that one of them holds at `faintness` of the strength, half of them in each."""
    loose: NonNegativeInt = 12
    """Features that are present in one of them alone in `apart` of the rows that have them."""
    only_a: NonNegativeInt = 10
    """Features of the first alone."""
    only_b: NonNegativeInt = 10
    """Features of the second alone."""
    faintness: float = Field(default=0.35, gt=0, lt=1)
    """Strength of a faint feature in the network that holds it less."""
    apart: float = Field(default=0.4, ge=0, le=1)
    """Share of a loose feature's rows in which only one network has it, either as often."""
    mean_active: float = Field(default=4.0, gt=0)
    """Features present per row, on average."""
    turn: NonNegativeFloat = 0.3
    """Tangent of the angle between a feature's directions in the two networks."""
    noise: NonNegativeFloat = 0.02
    """Standard deviation of the noise per coordinate, independent in the two."""


class PairedRows(NamedTuple):
    """Vectors of both networks, and what was in them."""

    vectors: dict[str, Float[Tensor, "rows d"]]
    """By the name of the network, `a` and `b`."""
    held: dict[str, Float[Tensor, "rows features"]]
    """Strength at which each network holds each feature."""


class PairedWorld:
    """Directions of every feature in both networks, and vectors made of them."""

    def __init__(self, settings: PairSettings, *, seed: int) -> None:
        s = self.settings = settings
        generator = seeded(WORLD, seed)
        counts = torch.tensor([s.shared, s.faint, s.loose, s.only_a, s.only_b])
        self.kind: Int[Tensor, " features"] = torch.arange(5).repeat_interleave(counts)
        """Place of each feature's kind in `KINDS`."""
        n = len(self.kind)
        a = unit_directions(n, s.d, generator)
        aside = unit_directions(n, s.d, generator)
        b = F.normalize(
            a + s.turn * F.normalize(aside - (aside * a).sum(1, keepdim=True) * a), dim=1
        )
        self.directions: dict[str, Float[Tensor, "features d"]] = {"a": a, "b": b}
        """Unit directions by network; an exclusive feature's are not used in the other."""
        gain = torch.ones(n, 2)
        faint = (self.kind == KINDS.index("faint")).nonzero()[:, 0]
        gain[faint[::2], 1] = gain[faint[1::2], 0] = s.faintness
        gain[self.kind == KINDS.index("only_a"), 1] = 0.0
        gain[self.kind == KINDS.index("only_b"), 0] = 0.0
        self.gain = gain
        """Strength [features, 2] in either network."""
        self.scale = math.sqrt(s.d / s.mean_active)
        """Brings vectors to a norm of about sqrt(d)."""

    def draw(self, rows: int, *, seed: int) -> PairedRows:
        """Rows of a data seed."""
        s, n = self.settings, len(self.kind)
        generator = seeded(DATA, seed)
        there = torch.rand(rows, n, generator=generator) < s.mean_active / n
        strength = there * (0.5 + torch.rand(rows, n, generator=generator))
        fate = torch.rand(rows, n, generator=generator)
        loose = self.kind == KINDS.index("loose")
        absent = {"a": loose & (fate < s.apart / 2), "b": loose & (fate > 1 - s.apart / 2)}
        vectors, held = {}, {}
        for place, name in enumerate(("a", "b")):
            held[name] = strength * self.gain[:, place] * ~absent[name]
            noise = s.noise * torch.randn(rows, s.d, generator=generator)
            vectors[name] = self.scale * (held[name] @ self.directions[name] + noise)
        return PairedRows(vectors, held)

    def truly_shared(
        self, feature: Int[Tensor, " latents"], network: str, code: SparseCode, rows: PairedRows
    ) -> Float[Tensor, " latents"]:
        """How strongly the other network holds each latent's feature when the latent is active,
        over how strongly `network` does: 0 for what is truly exclusive, 1 for what is held alike.

        `feature` says which feature each latent stands for.
        """
        at, latent = code.support.row, code.support.latent
        own, other = (
            torch.zeros(code.n_latents).index_add_(
                0, latent, code.value * rows.held[name][at, feature[latent]]
            )
            for name in (network, "b" if network == "a" else "a")
        )
        return other / own

    def nearest(
        self, directions: Float[Tensor, "latents d"], network: str
    ) -> tuple[Tensor, Tensor]:
        """For each direction in a network, the feature it is closest to, and the cosine."""
        best = (F.normalize(directions, dim=1) @ self.directions[network].T).max(1)
        return best.indices, best.values
