"""Vectors that are sparse sums of directions we planted, with what real features are said to have:
frequencies by Zipf's law, correlated firing, hierarchies, and noise.

    x = scale * (sum_i f_i d_i + noise)

The toy data of Sharkey, Braun & Millidge 2022, with the parent-child pairs in which absorption
shows (Chanin et al. 2024). Row i of a data seed is the same whatever was drawn before it.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.kernels.ragged import over_latents
from unweave.errors import UserError

CHUNK = 1024
"""Rows drawn at once, from a seed of their own."""
WORLD, SCALE, DATA = 1, 2, 3
"""What randomness is for; the first argument of `seeded`."""

Activity = Callable[[int, torch.Generator], SparseCode]
"""Draws which features are present in so many rows, and how strongly."""


class PlantedSettings(BaseModel):
    """What a planted world is like."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    d: PositiveInt = 64
    """Width of the vectors."""
    n_features: PositiveInt = 256
    """How many directions are planted; more than `d` puts them in superposition."""
    mean_active: float = Field(default=5.0, gt=0)
    """Features present per vector, on average."""
    firing: Literal["uniform", "zipf"] = "uniform"
    """How frequencies spread: all the same, or falling as a power of the rank."""
    zipf_exponent: NonNegativeFloat = 0.7
    """That power: the feature of rank r fires in proportion to r^-exponent."""
    group_size: PositiveInt = 1
    """Features that fire together: 1 for independent ones, 2 for pairs. Groups are drawn at random
    among the features that are nobody's children."""
    correlation: float = Field(default=0.6, ge=0, lt=1)
    """Correlation within a group of the Gaussians behind the firings (Gaussian copula)."""
    n_parents: NonNegativeInt = 0
    """Features that have children, spread evenly over the frequencies."""
    children: PositiveInt = 2
    """Children of each parent; they come last in the numbering."""
    child_share: float = Field(default=0.3, gt=0, lt=1)
    """How often a child is present given its parent; without its parent it never is."""
    magnitudes: Literal["uniform", "lognormal"] = "uniform"
    """Strength of a present feature: uniform on (0, 1), or log-normal around 1."""
    lognormal_sigma: NonNegativeFloat = 0.4
    """Spread of log-normal strengths."""
    noise_share: NonNegativeFloat = 0.0
    """Energy of the noise over the energy of the features."""
    noise: Literal["isotropic", "anisotropic"] = "isotropic"
    """The same noise in every direction, or variances falling as 1/rank in a random basis."""


class PlantedWorld:
    """Directions, who is whose parent, and vectors made of them."""

    def __init__(
        self,
        directions: Float[Tensor, "features d"],
        parents: Int[Tensor, " features"],
        activity: Activity,
        *,
        noise: Float[Tensor, "modes d"] | float,
        seed: int,
    ) -> None:
        """`noise` is a standard deviation per coordinate or a root of the covariance.

        Vectors are scaled to a mean norm of sqrt(d), measured on rows that no data seed yields.
        """
        self.directions, self.parents = directions, parents
        self._activity, self._noise = activity, noise
        self.scale = 1.0
        drawn = [self._chunk((SCALE, seed, index))[0] for index in range(4)]
        self.scale = math.sqrt(directions.shape[1]) / torch.cat(drawn).norm(dim=1).mean().item()

    @property
    def d(self) -> int:
        """Width of the vectors."""
        return self.directions.shape[1]

    @property
    def n_features(self) -> int:
        """How many directions there are."""
        return self.directions.shape[0]

    def draw(
        self, rows: int, *, seed: int, start: int = 0
    ) -> tuple[Float[Tensor, "rows d"], SparseCode]:
        """Rows `start` to `start + rows` of a data seed, and the true strength of every feature.

        Strengths are those that the unit directions must have for the vectors: scaled as they are.
        """
        first, last = start // CHUNK, (start + rows - 1) // CHUNK
        drawn = [self._chunk((DATA, seed, index)) for index in range(first, last + 1)]
        x = torch.cat([vectors for vectors, _ in drawn])
        skip = start - first * CHUNK
        code = SparseCode.cat([strengths for _, strengths in drawn])
        return x[skip : skip + rows], code.between(skip, skip + rows)

    def _chunk(self, entropy: tuple[int, int, int]) -> tuple[Tensor, SparseCode]:
        generator = seeded(*entropy)
        code = self._activity(CHUNK, generator)
        code = SparseCode(code.support, code.value * self.scale)
        x = over_latents(code.value, self.directions, code.support)
        if isinstance(self._noise, Tensor):
            drawn = torch.randn(CHUNK, len(self._noise), generator=generator) @ self._noise
        else:
            drawn = torch.randn(CHUNK, self.d, generator=generator) * self._noise
        return x + self.scale * drawn, code


def planted_world(settings: PlantedSettings, *, seed: int) -> PlantedWorld:
    """Plant a world; `seed` decides directions and groups, never the vectors drawn later."""
    generator = seeded(WORLD, seed)
    directions = unit_directions(settings.n_features, settings.d, generator)
    activity = CopulaActivity(settings, generator)
    energy = activity.energy() * settings.noise_share
    noise: Tensor | float = math.sqrt(energy / settings.d)
    if settings.noise == "anisotropic":
        basis = torch.linalg.qr(torch.randn(settings.d, settings.d, generator=generator)).Q
        variance = 1.0 / torch.arange(1, settings.d + 1)
        noise = (energy * variance / variance.sum()).sqrt()[:, None] * basis
    return PlantedWorld(directions, activity.parents, activity, noise=noise, seed=seed)


class CopulaActivity:
    """Features that fire when a Gaussian passes their threshold and their parent is there."""

    def __init__(self, settings: PlantedSettings, generator: torch.Generator) -> None:
        self.settings = settings
        self.parents = _parents(settings)
        """Parent of each feature; -1 for none."""
        roots = int((self.parents < 0).sum())
        order = torch.randperm(roots, generator=generator)
        self._group = torch.arange(settings.n_features)
        self._group[order] = torch.arange(roots) // settings.group_size
        self.rates = _rates(settings, self.parents)
        """How often each feature is present."""
        given = torch.where(self.parents < 0, self.rates, settings.child_share)
        self._threshold = torch.special.ndtri(1.0 - given.double()).float()

    def __call__(self, rows: int, generator: torch.Generator) -> SparseCode:
        """Draw so many rows, in units before the world's scale."""
        s = self.settings
        own = torch.randn(rows, s.n_features, generator=generator)
        shared = torch.randn(rows, s.n_features, generator=generator)[:, self._group]
        together = math.sqrt(s.correlation) * shared + math.sqrt(1.0 - s.correlation) * own
        fires = (together if s.group_size > 1 else own) > self._threshold
        fires &= (self.parents < 0) | fires[:, self.parents.clamp_min(0)]
        if s.magnitudes == "uniform":
            strength = 1.0 - torch.rand(rows, s.n_features, generator=generator)
        else:
            strength = torch.randn(rows, s.n_features, generator=generator)
            strength = (strength * s.lognormal_sigma).exp()
        return SparseCode.from_dense(fires * strength)

    def energy(self) -> float:
        """Expected sum of squared strengths per row."""
        s = self.settings
        square = 1 / 3 if s.magnitudes == "uniform" else math.exp(2 * s.lognormal_sigma**2)
        return self.rates.sum().item() * square


def seeded(purpose: int, seed: int, index: int = 0) -> torch.Generator:
    """A generator for one purpose: whatever differs in any of the three shares nothing."""
    state = np.random.SeedSequence((purpose, seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def unit_directions(n: int, d: int, generator: torch.Generator) -> Float[Tensor, "features d"]:
    """Directions drawn evenly over the sphere."""
    return F.normalize(torch.randn(n, d, generator=generator), dim=1)


def _parents(settings: PlantedSettings) -> Int[Tensor, " features"]:
    born = settings.n_parents * settings.children
    roots = settings.n_features - born
    if roots < max(settings.n_parents, 1):
        raise UserError(
            f"{settings.n_parents} parents with {settings.children} children each do not fit into"
            f" {settings.n_features} features: plant more features or fewer families"
        )
    parents = torch.full((settings.n_features,), -1)
    if settings.n_parents:
        at = (torch.arange(settings.n_parents) + 0.5) * roots / settings.n_parents
        parents[roots:] = at.long().repeat_interleave(settings.children)
    return parents


def _rates(settings: PlantedSettings, parents: Tensor) -> Float[Tensor, " features"]:
    rank = torch.arange(1, settings.n_features + 1).float()
    weight = rank ** (-settings.zipf_exponent if settings.firing == "zipf" else 0.0)
    child = parents >= 0
    weight[child] = settings.child_share * weight[parents[child]]
    rates = settings.mean_active * weight / weight.sum()
    if rates.max() >= 1:
        raise UserError(
            f"The most frequent planted feature would have to fire {rates.max():.2f} times per"
            " vector: ask for fewer active features or a flatter firing distribution"
        )
    return rates
