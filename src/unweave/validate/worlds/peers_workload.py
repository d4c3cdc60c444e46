"""The workload on which we and the other dictionary libraries are timed and compared.

4096 unit directions in 576 dimensions, in 256 groups of 16. A vector takes 5 groups by Zipf's law
(exponent 0.7) and 4 features of each by Zipf's law (exponent 0.5), so 20 features, with log-normal
strengths that share a factor within the group, and noise of 0.02 per coordinate.
"""

import torch
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.validate.worlds.features import WORLD, PlantedWorld, seeded, unit_directions

WIDTH, GROUPS, MEMBERS = 576, 256, 16
GROUPS_ACTIVE, MEMBERS_ACTIVE = 5, 4
GROUP_EXPONENT, MEMBER_EXPONENT = 0.7, 0.5
SIGMA, NOISE = 0.3, 0.02


def peers_workload(*, seed: int) -> PlantedWorld:
    """The world; vectors are drawn from it with a seed of their own."""
    features = GROUPS * MEMBERS
    directions = unit_directions(features, WIDTH, seeded(WORLD, seed))
    return PlantedWorld(directions, torch.full((features,), -1), _activity, noise=NOISE, seed=seed)


def _activity(rows: int, generator: torch.Generator) -> SparseCode:
    groups = _zipf(GROUPS, GROUP_EXPONENT).expand(rows, GROUPS)
    group = torch.multinomial(groups, GROUPS_ACTIVE, generator=generator)
    members = _zipf(MEMBERS, MEMBER_EXPONENT).expand(rows * GROUPS_ACTIVE, MEMBERS)
    member = torch.multinomial(members, MEMBERS_ACTIVE, generator=generator)
    member = member.view(rows, GROUPS_ACTIVE, MEMBERS_ACTIVE)
    shared = torch.randn(rows, GROUPS_ACTIVE, 1, generator=generator)
    own = torch.randn(rows, GROUPS_ACTIVE, MEMBERS_ACTIVE, generator=generator)
    strength = (SIGMA * (shared + own)).exp()
    feature = (group[:, :, None] * MEMBERS + member).view(rows, -1)
    return SparseCode.from_topk(feature, strength.view(rows, -1), GROUPS * MEMBERS)


def _zipf(n: int, exponent: float) -> Tensor:
    return torch.arange(1, n + 1).float() ** -exponent
