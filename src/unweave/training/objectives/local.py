"""The local objective: each dictionary reproduces what its sites hold.

    loss = mean over rows of |y - y_hat|^2 + penalties

in scaled units, summed over coordinates; with nesting the mean over prefixes (Matryoshka, Bussmann
et al. 2025); with a gated activation plus the second reconstruction that trains the gate, beside
the frozen offset and skip; with a switch encoder plus its balancing loss.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary, Pass
from unweave.dictionaries.encoder.switch import SwitchEncoder
from unweave.dictionaries.shares import batch_spread, shares
from unweave.training.batches import VectorBatch
from unweave.training.dead import AuxK, auxk_loss
from unweave.training.objectives.loss import Loss, State, Watched
from unweave.training.penalties.weighted import Steering


class Local(BaseModel):
    """Reconstruction of the sites."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local"] = "local"
    error: Literal["squared", "huber"] = "squared"
    """Squared distance of each row, or that distance itself once it exceeds sqrt(width), so that a
    few massive activations do not own the gradient."""
    balance: NonNegativeFloat = 3.0
    """Weight of a switch encoder's balancing loss, per coordinate written."""

    def loss(
        self,
        dictionaries: Mapping[str, Dictionary],
        batch: VectorBatch,
        state: State,
        steering: Mapping[str, Steering],
        auxk: AuxK | None,
    ) -> Loss:
        """The sum over dictionaries, each on its own sites of the batch."""
        totals, watched = [], {}
        log: dict[str, float] = {}
        for name, dictionary in dictionaries.items():
            silent_too = any(p.form.kind == "pre_activation" for p in steering[name].penalties)
            compare = self.error == "squared"
            seen = watch(dictionary, batch, compare=compare, all_latents=silent_too)
            fit = self._fit(seen)
            charged = steering[name].charge(dictionary, seen.passed, state.done)
            extra = self._extra(dictionary, seen)
            dead = state.dead[name]
            if auxk is not None and auxk.weight and shares().dead(dead).total:
                missing = (seen.y - seen.passed.y).detach()
                share = auxk_loss(dictionary, seen.x, missing, dead, auxk.k)
                extra = extra + auxk.weight * batch_spread(seen.y) * share
            totals.append(fit + charged.total + extra)
            watched[name] = seen
            log |= {
                f"{name}.fit": fit.item(),
                f"{name}.penalty": charged.total.item(),
                f"{name}.penalty_weight": charged.weight,
            }
        return Loss(torch.stack(totals).sum(), watched, log)

    def _fit(self, seen: Watched) -> Tensor:
        if seen.passed.misfit is not None:
            return seen.passed.misfit
        if seen.passed.prefixes is None:
            return self._error(seen.passed.y, seen.y)
        prefixes = seen.passed.prefixes
        return torch.stack([self._error(p, seen.y) for p in prefixes.unbind(1)]).mean()

    def _error(self, y_hat: Tensor, y: Tensor) -> Tensor:
        square = (y_hat - y).square().sum(1)
        if self.error == "squared":
            return square.mean()
        limit = math.sqrt(y.shape[1])
        far = square > limit**2
        distance = torch.where(far, square, 1.0).sqrt()
        return torch.where(far, 2 * limit * distance - limit**2, square).mean()

    def _extra(self, dictionary: Dictionary, seen: Watched) -> Tensor:
        extra = seen.y.new_zeros(())
        if dictionary.spec.activation.kind == "gated":
            assert seen.passed.pre is not None
            frozen = torch.relu(seen.passed.pre) @ dictionary.decoder().detach()
            frozen = frozen + dictionary.beside(seen.x).detach()
            extra = extra + (frozen - seen.y).square().sum(1).mean()
        if isinstance(dictionary.encoder, SwitchEncoder):
            read = seen.x - dictionary.b_dec if dictionary.spec.pre_bias else seen.x
            extra = extra + self.balance * seen.y.shape[1] * dictionary.encoder.balance(read)
        return extra


def watch(
    dictionary: Dictionary, batch: VectorBatch, *, compare: bool = False, all_latents: bool = True
) -> Watched:
    """Run one dictionary on its sites; with `compare` its output carries a loss, not gradients,
    where that saves work. See `Dictionary.run`."""
    spec = dictionary.spec
    x = batch.cat([p.site for p in spec.reads]) * dictionary.input_scale
    same = [p.site for p in spec.reads] == [p.site for p in spec.writes]
    y = x if same else batch.cat([p.site for p in spec.writes]) * dictionary.output_scale
    if spec.layer_norm:
        x = y = dictionary.normalise(x)[0]
    passed: Pass = dictionary.run(x, target=y if compare else None, all_latents=all_latents)
    return Watched(x, y, passed)
