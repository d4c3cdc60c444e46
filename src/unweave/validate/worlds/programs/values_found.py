"""Whether a dictionary found a program's variables, by when its latents fire.

At every place each variable holds exactly one of its values, so a vector may be added to all
directions of a variable and taken off the offset, and nothing changes: cosines with the directions
(`measure_recovery`) then understate what was found. When a latent fires is free of that, and so is
the difference between the directions of one variable.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import Coder, SparseCode
from unweave.errors import UserError
from unweave.validate.worlds.programs.as_world import site_vectors
from unweave.validate.worlds.programs.compiled import Compiled


class ValuesFound(NamedTuple):
    """A dictionary beside the values that variables take; only those that vary count."""

    values: int
    """Values that some places hold and others do not."""
    f1: float
    """Mean over values of the best F1, among the latents, of firing where the value is held."""
    f1_reverse: float
    """Mean over latents that fire of the best F1 among the values."""
    chance: float
    """The first of these with the places of the latents' firings shuffled."""
    cosine: float
    """Mean over values of the cosine between what the value adds to the mean of its variable and
    what its best latent adds to the mean of that variable's best latents. Values that are held at
    the very same places, which nobody can tell apart, are left out."""


def measure_values(
    coder: Coder,
    compiled: Compiled,
    rows: Int[Tensor, "rows pos"],
    site: str = "final",
    *,
    seed: int = 0,
) -> ValuesFound:
    """Hold a dictionary of a site to the variables that the program has there.

    Raises:
        UserError: as `values_found`.
    """
    kept = compiled.directions_at(site)
    there = [v for v in compiled.variables if v.at(site)]
    return values_found(
        coder,
        site_vectors(compiled, rows, site),
        compiled.directions[kept],
        compiled.activity(rows, site)[:, 1:, kept].flatten(0, 1),
        [v.name for v in there for _ in range(v.size)],
        seed=seed,
    )


@torch.no_grad()
def values_found(
    coder: Coder,
    x: Float[Tensor, "rows d"],
    directions: Float[Tensor, "values d"],
    activity: Float[Tensor, "rows values"],
    variable: list[str],
    *,
    seed: int = 0,
) -> ValuesFound:
    """Hold a coder to the values that a program's variables hold at every row of `x`.

    `activity` says how much of each value there is, `variable` whose value it is.

    Raises:
        UserError: no value that comes and goes.
    """
    share = (activity != 0).float().mean(0)
    kept = ((share > 0) & (share < 1)).nonzero()[:, 0]
    if not len(kept):
        raise UserError("No value comes and goes at these places, so there is none to be found")
    code = coder.encode(x)
    held, fires = (activity[:, kept] != 0).float(), (code.dense() != 0).float()
    f1 = _f1(held, fires)
    generator = torch.Generator().manual_seed(seed)
    shuffled = _f1(held, fires[torch.randperm(len(fires), generator=generator)])
    best, latent = f1.max(1)
    alive = fires.any(0)
    written = _mean_strength(code)[:, None] * coder.directions()
    apart = (_f1(held, held) == 1).sum(1) == 1
    names = [variable[i] for i in kept[apart].tolist()]
    mine = _less_their_mean(directions[kept[apart]], share[kept[apart]], names)
    theirs = _less_their_mean(written[latent[apart]], share[kept[apart]], names)
    return ValuesFound(
        values=len(kept),
        f1=best.mean().item(),
        f1_reverse=f1.amax(0)[alive].mean().item(),
        chance=shuffled.amax(1).mean().item(),
        cosine=F.cosine_similarity(mine, theirs, dim=1).mean().item(),
    )


def _f1(held: Tensor, fires: Tensor) -> Float[Tensor, "values latents"]:
    both = held.T @ fires
    return 2 * both / (held.sum(0)[:, None] + fires.sum(0)[None]).clamp(min=1)


def _mean_strength(code: SparseCode) -> Float[Tensor, " latents"]:
    """Mean strength of each latent where it fires."""
    total = torch.zeros(code.n_latents).index_add(0, code.support.latent, code.value)
    return total / code.fired().clamp(min=1)


def _less_their_mean(vectors: Tensor, share: Tensor, names: list[str]) -> Tensor:
    """Each vector less the mean of its variable's, weighted by how often each is held."""
    out = vectors.clone()
    for name in set(names):
        own = torch.tensor([n == name for n in names])
        weight = share[own] / share[own].sum()
        out[own] -= (weight[:, None] * vectors[own]).sum(0)
    return out
