"""What SCR and TPP share: effects of latents on a probe, and probes after latents are taken out.

    effect_i = (mean of f_i on yes - mean of f_i on no) (W_dec,i . w)

with w the weights of a linear probe on mean activations (Marks et al. 2024, 2403.19647, eq. for
linear probes; Karvonen et al. 2025). The n latents with the largest effect are set to zero, the
dictionary's error is kept, and the probes are asked again.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.validate.protocols.pooling import Pooled
from unweave.validate.protocols.probes import Probe, Task, TrainedProbeSettings


class AblationSettings(BaseModel):
    """Settings of SCR and of TPP; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: PositiveInt = 4000
    """Training texts of one probe: half of its class, half of the others."""
    test: PositiveInt = 1000
    """Test texts of one probe."""
    context: PositiveInt = 128
    """Tokens of a text that are read."""
    n: tuple[PositiveInt, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Numbers of latents taken out."""
    classes: PositiveInt = 5
    """Most labels of a data set that are used (TPP)."""
    probe: TrainedProbeSettings = TrainedProbeSettings()
    """Training of the probes."""
    told: float = 0.6
    """Accuracy that clean probes of label and cue must reach for a pair to count (SCR); ours, and
    no published pair comes near it."""
    padded: bool = True
    """Whether padding is ablated too, as published: see `protocols.pooling`."""


def effects(
    pooled: Pooled,
    task: Task,
    probe: Probe,
    unit: Float[Tensor, "latents d_out"],
    *,
    signed: bool,
) -> Float[Tensor, " latents"]:
    """Effect of each latent on a probe: for SCR its size; for TPP signed, and zero for latents
    that are weaker on the class than on the others.
    """
    latents = pooled.latents[task.which]
    apart = latents[task.yes].mean(0) - latents[~task.yes].mean(0)
    toward = unit @ probe.weight
    return apart.clamp_min(0) * toward if signed else (apart * toward).abs()


def strongest(effect: Float[Tensor, " latents"], n: int) -> Int[Tensor, " some"]:
    """The n latents of the largest effect, or as many as have any."""
    return effect.topk(min(n, int((effect != 0).sum()))).indices


def fitting(n: Sequence[int], latents: int) -> list[int]:
    """Those numbers of latents that a dictionary has."""
    return [each for each in n if each <= latents]
