"""The local objective: make one part reproduce the block it replaces.

    loss = mean over tokens of huber(|| s_out (y - part(x)) ||)

with the gradients written out by hand from `dictionaries.kernels`: nothing dense but the encoder.
Rows far off weigh as 1/distance (Huber), or a few massive activations would own the gradient.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.dictionaries.kernels.gpu import calls as gpu
from unweave.dictionaries.kernels.sparse import (
    Code,
    decode,
    product_dtype,
    select_topk,
    value_gradient,
    weight_gradients,
)
from unweave.dictionaries.part import Part
from unweave.training.adam_state import part_state, restore_part
from unweave.training.schedule import linear_decay


class LocalSettings(BaseModel):
    """How a part is fitted to its block."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch: PositiveInt = 2048
    """Vectors per step."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate of Adam."""
    pattern_lr: PositiveFloat | None = None
    """The same for parts of queries and keys, which in a wide stream go astray at rates that suit
    the others; when not given, `lr`."""
    epochs: PositiveInt = 1
    """Visits of the whole text."""
    revive_at: tuple[float, ...] = (0.15, 0.3, 0.45)
    """Shares of the run at which latents that fell silent restart from badly served tokens."""
    silent_share: float = Field(default=0.05, gt=0, lt=1)
    """A latent is dead when silent for this share of the run's tokens."""


class StepReport(NamedTuple):
    """What one step saw, before its update."""

    loss: float
    """Mean squared error over the target's variance in this batch (FVU), unclipped."""
    revived: int
    """Latents restarted in this step."""


class LocalTrainer:
    """One part, its optimiser, and how long each latent has been silent."""

    def __init__(self, part: Part, steps: int, *, seed: int, settings: LocalSettings) -> None:
        self.part, self.steps, self.settings = part, steps, settings
        self.step_index = 0
        self._seed = seed
        self.silent: Int[Tensor, " latents"] = torch.zeros(
            part.spec.n_latents, dtype=torch.long, device=part.W_dec.device
        )
        self.optimizer = torch.optim.Adam(part.parameters(), lr=settings.lr, fused=True)
        self._revive_steps = {int(share * steps) for share in settings.revive_at}

    def step(self, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"]) -> StepReport:
        """One update on a batch of raw site vectors."""
        part, spec = self.part, self.part.spec
        with torch.no_grad():
            x, y = x * spec.input_scale, y * spec.output_scale
            here = x.device.type == "cpu"
            fast = product_dtype() if here else gpu.number_format(x.device)
            dtype = fast if x.dtype == torch.float32 else x.dtype
        if spec.gated:
            with torch.enable_grad():
                total, code = part.run_scaled(x, dtype)
        else:
            with torch.no_grad():
                code = select_topk(x, part.W_enc, part.b_enc, spec.k, heads=spec.heads, dtype=dtype)
                total = decode(code, part.W_dec).add_(part.b_dec)
                if part.W_skip is not None:
                    total.addmm_(x, part.W_skip.T)
        with torch.no_grad():
            error = total - y
            fvu = (error.square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-12)).item()
            g = self._output_gradient(error)
        if spec.gated:
            total.backward(g)  # before weights change in place
        with torch.no_grad():
            self._note_silence(code)
            revived = 0
            if self.step_index in self._revive_steps:
                revived = self._revive(x, error)
            if not spec.gated:
                self._sparse_gradients(x, code, g)
            self._update()
        self.step_index += 1
        return StepReport(fvu, revived)

    def _output_gradient(self, error: Tensor) -> Tensor:
        """Gradient of the mean Huber loss in what the part writes."""
        limit = math.sqrt(self.part.spec.d_out)
        weight = (limit / error.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_(max=1.0)
        return (error * weight).mul_(2.0 / (len(error) * limit))

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * linear_decay(self.step_index, self.steps)
        self.optimizer.step()
        self.optimizer.zero_grad()  # as large as the part itself: not to be kept for every part
        self.part.unit_decoder_()

    def _sparse_gradients(self, x: Tensor, code: Code, g: Tensor) -> None:
        """Gradients of latents that read linearly, without a graph."""
        part, spec = self.part, self.part.spec
        value_grad = value_gradient(code, g, part.W_dec)
        weights = weight_gradients(code, value_grad, x, g, spec.n_latents, heads=spec.heads)
        part.W_enc.grad, part.b_enc.grad = weights.W_enc, weights.b_enc
        part.W_dec.grad, part.b_dec.grad = weights.W_dec, g.sum(0)
        if part.W_skip is not None:
            part.W_skip.grad = g.T @ x

    def _note_silence(self, code: Code) -> None:
        fired = torch.zeros_like(self.silent, dtype=torch.bool)
        fired[code.latent[code.value != 0]] = True
        self.silent += len(code.latent)
        self.silent[fired] = 0

    def _revive(self, x: Tensor, error: Tensor) -> int:
        """Restart dead latents at tokens drawn with probability proportional to squared error.

        The encoder points at the token's input, the decoder at what was missing there, at half
        the living encoders' length; Adam forgets the old latent (Bricken et al. 2023 take a fifth,
        with which a latent of ours hardly ever comes among the k largest).
        """
        part, spec = self.part, self.part.spec
        limit = self.settings.silent_share * self.steps * self.settings.batch
        dead = (self.silent > limit).nonzero()[:, 0]
        if not len(dead):
            return 0
        generator = torch.Generator().manual_seed(self._seed + self.step_index)
        weight = error.square().sum(1).clamp(max=spec.d_out).clamp_min(1e-12)
        # Drawn on the processor, from which the generator is.
        drawn = torch.multinomial(weight.cpu(), len(dead), replacement=True, generator=generator)
        drawn = drawn.to(x.device)
        slot = (dead // (spec.n_latents // spec.heads))[:, None]
        read = (slot * spec.d_read + torch.arange(spec.d_read, device=x.device)[None]).long()
        source = x - x.mean(0)
        direction = source[drawn].gather(1, read)
        direction /= direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
        alive = part.W_enc.norm(dim=1)[self.silent <= limit].mean()
        height = 0.5 * (alive if torch.isfinite(alive) else torch.tensor(1.0))
        part.W_enc[dead] = direction * height
        part.b_enc[dead] = -(part.W_enc[dead] * x.mean(0)[read]).sum(1)
        renewed = [part.W_enc, part.b_enc, part.W_dec]
        if part.W_gate is not None and part.b_gate is not None:
            part.W_gate[dead], part.b_gate[dead] = 0.0, 1.0  # an open gate
            renewed += [part.W_gate, part.b_gate]
        missing = -error[drawn]
        part.W_dec[dead] = missing / missing.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for parameter in renewed:
            state = self.optimizer.state.get(parameter, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment][dead] = 0
        self.silent[dead] = 0
        return len(dead)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        own = {"silent": self.silent, "step": torch.tensor(self.step_index)}
        return part_state(self.part, self.optimizer) | own

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on exactly where `state()` was taken."""
        restore_part(self.part, self.optimizer, state)
        self.silent = state["silent"].to(self.silent.device, copy=True)
        self.step_index = int(state["step"])
