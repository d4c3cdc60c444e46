"""What a recipe is asked for and what it answers with.

Papers count in different units; recipes translate. Vectors here have a typical norm of sqrt(width),
errors are summed over coordinates and gradients are clipped in units of sqrt(width); warm-ups and
windows are shares of the run, the paper's steps over the paper's length.
"""

import math
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from unweave.dictionaries.dictionary_spec import Activation, DictionarySpec, Port
from unweave.errors import UserError
from unweave.training.penalties.weighted import Form, Penalty
from unweave.training.trainee import TraineeSettings


class Ask(BaseModel):
    """Where a dictionary stands, how wide it is and how sparse."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    reads: tuple[Port, ...] = Field(min_length=1)
    """Sites read; for `clt` one a layer."""
    writes: tuple[Port, ...] = Field(min_length=1)
    """Sites written: the same for an autoencoder; for `clt` one a layer."""
    n_latents: PositiveInt
    """Number of latents; for `clt` in each layer."""
    k: PositiveInt | None = None
    """Latents per token: exactly or on average where they are chosen, else the L0 that the
    penalty's weight is steered to."""
    penalty: PositiveFloat | None = None
    """Weight of the penalty in place of the paper's, for recipes that have one."""
    lr: PositiveFloat | None = None
    """Learning rate in place of the paper's, whose runs are long."""
    later: tuple[str, ...] = ()
    """Sites after the written ones that `e2e-ds-braun` keeps as they were."""

    @property
    def width(self) -> int:
        """Width of what is written."""
        return sum(port.width for port in self.writes)

    @property
    def same(self) -> bool:
        """Whether it is an autoencoder."""
        return [p.site for p in self.reads] == [p.site for p in self.writes]

    def chosen(self, name: str, default: int = 32) -> int:
        """k of a recipe that chooses its latents.

        Raises:
            UserError: a penalty's weight for a recipe that has no penalty, or too few latents.
        """
        if self.penalty is not None:
            raise UserError(f"{name} chooses its latents and has no penalty: give k instead")
        k = self.k or default
        if k > self.n_latents:
            raise UserError(f"{name}: k={k} exceeds its {self.n_latents} latents")
        return k

    def charged(
        self,
        name: str,
        form: Form,
        published: float | None,
        *,
        warmup: float,
        steer_from: float | None = None,
    ) -> tuple[Penalty, ...]:
        """The penalty of a recipe: its own weight, the paper's, or one steered to an L0 of k.

        Steering begins at `steer_from`, or where a latent's charge is a tenth of what it explains.

        Raises:
            UserError: the paper names no weight and neither k nor a weight was given.
        """
        if self.k is None:
            weight = self.penalty or published
            if weight is None:
                raise UserError(f"{name}: its paper sweeps the penalty's weight: give k or penalty")
            return (Penalty(form=form, weight=weight, warmup=warmup),)
        guess = self.penalty or steer_from or self._tenth(form)
        # Ours: steering waits for the end of the warm-up, so that ends in the first fifth.
        return (Penalty(form=form, weight=guess, warmup=min(warmup, 0.2), target_l0=self.k),)

    def _tenth(self, form: Form) -> float:
        explained = self.width / (self.k or 1)  # squared strength of one of k latents
        counts = form.kind in ("tanh", "l0")
        return 0.1 * explained if counts else 0.2 * math.sqrt(explained)

    def spec(self, activation: Activation, **changes: Any) -> DictionarySpec:
        """A spec with this ask's sites and width."""
        return DictionarySpec(
            reads=self.reads,
            writes=self.writes,
            n_latents=self.n_latents,
            activation=activation,
            **changes,
        )


class Built(NamedTuple):
    """A recipe carried out: what to train and how."""

    specs: dict[str, DictionarySpec]
    """By name; one but for sets of several."""
    settings: TraineeSettings
    """For the trainee that holds them."""


def rooted(width: int) -> float:
    """sqrt(width): a paper's norm of one is this here."""
    return math.sqrt(width)


def gao_lr(n_latents: int) -> float:
    """2e-4 / sqrt(latents / 2^14): Gao et al. 2024."""
    return 2e-4 / math.sqrt(n_latents / 2**14)
