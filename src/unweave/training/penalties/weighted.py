"""A penalty with its weight: ramped up, and steered towards an L0 where one is asked for."""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.dictionaries.shares import shares
from unweave.training.penalties.hoyer import Hoyer
from unweave.training.penalties.l0 import L0, PreActivation
from unweave.training.penalties.pointwise import L1, Log, Lp, Sqrt, Tanh
from unweave.training.penalties.strengths import strengths

Form = Annotated[
    L1 | Lp | Sqrt | Tanh | Log | Hoyer | L0 | PreActivation, Field(discriminator="kind")
]


class Penalty(BaseModel):
    """A form of penalty and how much it weighs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Form
    """What is charged."""
    weight: NonNegativeFloat
    """Factor of the penalty once warm-up is over (lambda)."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which the weight rises linearly from zero."""
    target_l0: PositiveFloat | None = None
    """When given, the weight is only the first guess: it is multiplied by exp(gain (L0 / target -
    1)) at every step after warm-up, within the bounds of a hundredth and a hundred times."""
    gain: PositiveFloat = 0.02
    """How fast the weight follows the L0."""

    @model_validator(mode="after")
    def _steers(self) -> "Penalty":
        if self.target_l0 is not None and self.warmup == 1:
            raise ValueError(
                "target_l0 is steered to once warm-up is over, and with warmup = 1 that is never: "
                "set a warmup below 1"
            )
        return self


class Charged(NamedTuple):
    """A penalty's bill for one pass."""

    total: Float[Tensor, ""]
    """Weighted, in the units of the loss."""
    weight: float
    """The weight that was used."""


class Steering:
    """The weights of one dictionary's penalties while it trains; a tensor, for checkpoints."""

    def __init__(self, penalties: tuple[Penalty, ...]) -> None:
        self.penalties = penalties
        self.log_factor = torch.zeros(len(penalties))

    def charge(self, dictionary: Dictionary, passed: Pass, done: float) -> Charged:
        """All penalties on one pass, `done` being the share of the run behind us."""
        if not self.penalties:
            return Charged(passed.y.new_zeros(()), 0.0)
        at = strengths(dictionary, passed)
        total, weights = passed.y.new_zeros(()), 0.0
        for index, penalty in enumerate(self.penalties):
            ramp = min(1.0, done / penalty.warmup) if penalty.warmup else 1.0
            weight = penalty.weight * ramp * float(self.log_factor[index].exp())
            form = penalty.form
            if isinstance(form, L0 | PreActivation):
                bill = form.of_jump(at, dictionary.activation)
            else:
                bill = form.of(at, done)
            total = total + weight * bill
            weights += weight
            if penalty.target_l0 is not None and ramp == 1.0:
                self._steer(index, penalty, penalty.target_l0, passed)
        return Charged(total, weights)

    def _steer(self, index: int, penalty: Penalty, target: float, passed: Pass) -> None:
        step = penalty.gain * min(1.0, _l0(passed) / target - 1)
        self.log_factor[index] = (self.log_factor[index] + step).clamp(-4.6, 4.6)


@torch.no_grad()
def _l0(passed: Pass) -> float:
    if passed.code is not None:
        value, rows = passed.code.value, passed.code.support.rows
    else:
        assert passed.latents is not None
        value, rows = passed.latents, len(passed.latents)
    on = (value != 0).sum().double() / max(rows, 1)
    return shares().mean(shares().total(on)).item()
