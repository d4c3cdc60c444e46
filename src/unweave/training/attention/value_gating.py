"""Train value features that key features call for, on what a block's heads bring."""

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.attention.value_gating import ValueGating, move
from unweave.progress import QUIET, Progress


class GatingSettings(BaseModel):
    """How value features are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: PositiveInt = 300
    """Updates."""
    rows: PositiveInt = 8
    """Rows of text a step."""
    lr: PositiveFloat = 3e-3
    """Learning rate of Adam."""
    penalty: NonNegativeFloat = 1e-3
    """Of the mean over positions of sum_i u_i |W_dec_i|, beside the FVU."""


def learn_gating(
    gating: ValueGating,
    keys: Float[Tensor, "rows pos keys"],
    pattern: Float[Tensor, "rows heads pos pos"],
    z: Float[Tensor, "rows pos heads d_head"],
    *,
    seed: int,
    settings: GatingSettings | None = None,
    progress: Progress = QUIET,
) -> None:
    """Train in place, to bring what heads bring along the pattern that they have.

    Step s draws its rows from the seed and s alone.
    """
    settings = settings or GatingSettings()
    spread = (z - z.mean((0, 1))).square().sum((-1, -2)).mean()
    adam = torch.optim.Adam(gating.parameters(), lr=settings.lr, fused=True)
    with progress.task("Gating values", total=settings.steps, unit="steps") as advance:
        for step in range(settings.steps):
            generator = torch.Generator().manual_seed((seed << 20) + step)
            drawn = torch.randperm(len(z), generator=generator)[: settings.rows]
            made = move(pattern[drawn], gating.values(keys[drawn]))
            missed = (made - z[drawn]).square().sum((-1, -2)).mean() / spread
            length = gating.W_dec.flatten(1).norm(dim=1)
            strength = (gating.features(keys[drawn]) * length).sum(-1).mean() / spread.sqrt()
            adam.zero_grad()
            (missed + settings.penalty * strength).backward()
            adam.step()
            advance(1)
    adam.zero_grad()
