"""Meta-dictionaries (Bussmann, Pearce, Leask, Sharkey, Nanda 2024): a dictionary of a dictionary's
own decoder directions.

A latent whose direction is a sum of a few meta-latents' is composed of them; the less of the
directions' variance a meta-dictionary explains, the more atomic the latents are. Directions drawn
at random are the yardstick: a narrow dictionary explains a good part even of those.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.training.batches import VectorBatch
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

_SITE = "directions"


class MetaSettings(BaseModel):
    """How a meta-dictionary is trained; defaults of SAEBench's meta-structure evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    share: float = Field(default=0.25, gt=0)
    """Meta-latents over latents (F / 4)."""
    k: PositiveInt = 4
    """Meta-latents per direction on average."""
    batch: PositiveInt = 1024
    """Directions per step, drawn with replacement."""
    steps: PositiveInt = 1500
    """Steps of training."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate of Adam."""


class Meta(NamedTuple):
    """A meta-dictionary and how much of the directions it explains."""

    dictionary: Dictionary
    """Its latents are the meta-latents; it reads and writes unit directions."""
    explained: float
    """Share of the directions' variance around their mean that it explains."""
    per_direction: Float[Tensor, " latents"]
    """Of each direction, one minus its squared error over its squared distance from the mean."""
    l0: float
    """Meta-latents per direction, with the threshold that is used after training."""


class Drawn:
    """Rows drawn with replacement, each step's by the step alone."""

    def __init__(self, rows: Float[Tensor, "rows d"], *, batch: int, steps: int, seed: int) -> None:
        self._rows, self.batch, self.steps, self._seed = rows, batch, steps, seed

    def at(self, step: int) -> VectorBatch:
        """The batch of one step."""
        generator = torch.Generator().manual_seed((self._seed << 24) + step)
        drawn = torch.randint(len(self._rows), (self.batch,), generator=generator)
        return VectorBatch({_SITE: self._rows[drawn]})


def train_meta(
    directions: Float[Tensor, "latents d"], settings: MetaSettings | None = None, *, seed: int = 0
) -> Meta:
    """Train a meta-dictionary on decoder directions (`Coder.directions()`), brought to unit norm.

    Latents that write nothing are left out.

    Raises:
        UserError: fewer directions than make `k` meta-latents.
    """
    settings = settings or MetaSettings()
    kept = directions[directions.norm(dim=1) > 0].detach().float().cpu()
    width = round(settings.share * len(kept))
    if width < settings.k:
        raise UserError(
            f"{len(kept)} directions make {width} meta-latents at a share of {settings.share}, "
            f"fewer than k={settings.k}: raise the share or lower k"
        )
    rows = F.normalize(kept, dim=1)
    spec = autoencoder(_SITE, rows.shape[1], width, BatchTopK(k=settings.k), name="meta")
    dictionary = Dictionary(spec)
    source = Drawn(rows, batch=settings.batch, steps=settings.steps, seed=seed)
    trainee = Trainee(
        {"meta": dictionary},
        TraineeSettings(lr=settings.lr),
        steps=settings.steps,
        batch=settings.batch,
        seed=seed + 1,
    )
    train([trainee], source)
    return measure_meta(dictionary, rows)


@torch.no_grad()
def measure_meta(dictionary: Dictionary, rows: Float[Tensor, "latents d"]) -> Meta:
    """How much of unit directions a meta-dictionary explains."""
    code = dictionary.encode(rows)
    error = (rows - dictionary.decode(code)).square().sum(1)
    spread = (rows - rows.mean(0)).square().sum(1)
    explained = 1 - (error.sum() / spread.sum()).item()
    return Meta(dictionary, explained, 1 - error / spread.clamp_min(1e-12), code.l0())
