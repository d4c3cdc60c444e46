"""JumpReLU: learned thresholds (Rajamanoharan et al. 2024, 2407.14435; Anthropic, January 2025).

    f = z 1[z > theta],  theta = exp(log_theta)

Neither the jump of f nor the count 1[z > theta] has a useful gradient, so both are given one in a
window of width eps around the threshold (K is one within half a unit of zero):

    df/dtheta = -(theta / eps) K((z - theta) / eps)      d1/dtheta = -(1 / eps) K(...)

With `gradient_to="all"` (Anthropic, January 2025) z gets the opposite of what theta gets on top of
its own 1[z > theta], so that encoders learn to cross thresholds too.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen


class JumpReLU(Chosen):
    """f = z where z exceeds the latent's own threshold."""

    kind: Literal["jumprelu"] = "jumprelu"
    threshold: PositiveFloat = 1e-3
    """Every threshold's first value."""
    bandwidth: PositiveFloat = 1e-3
    """Width eps of the window in which thresholds learn, for inputs of unit mean-square norm."""
    gradient_to: Literal["threshold", "all"] = "threshold"
    """Who learns in that window: thresholds alone, or encoders too."""

    def build(self, n_latents: int) -> "JumpReLUActivation":
        """The module; `log_threshold` [latents] is its one parameter."""
        return JumpReLUActivation(self, n_latents)


class JumpReLUActivation(nn.Module):
    """See `JumpReLU`."""

    def __init__(self, settings: JumpReLU, n_latents: int) -> None:
        super().__init__()
        self.settings = settings
        self.log_threshold = nn.Parameter(torch.full((n_latents,), math.log(settings.threshold)))

    @property
    def threshold(self) -> Float[Tensor, " latents"]:
        """What a pre-activation must exceed."""
        return self.log_threshold.exp()

    def forward(
        self, pre: Float[Tensor, "rows latents"], b_enc: Float[Tensor, " latents"] | None = None
    ) -> Float[Tensor, "rows latents"]:
        """Latents of every row."""
        return _Jump.apply(pre, self.threshold, *self._how())

    def count(self, pre: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows latents"]:
        """1 where a latent fires, with the gradient that an L0 penalty needs."""
        return _Step.apply(pre, self.threshold, *self._how())

    def reach(self, margin: float) -> Float[Tensor, " latents"]:
        """What a pre-activation must exceed to matter: below the window it has no value and no
        gradient. `margin` is by how much it may be off, relative to its threshold."""
        threshold = self.threshold.detach()
        return threshold * (1 - margin) - self.settings.bandwidth / 2

    def at(
        self, picked: Float[Tensor, " active"], latent: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """Latents at the entries of a support."""
        return _JumpAt.apply(picked, self.threshold, latent, *self._how())

    def count_at(
        self, picked: Float[Tensor, " active"], latent: Int[Tensor, " active"]
    ) -> Float[Tensor, " active"]:
        """`count` at the entries of a support."""
        return _StepAt.apply(picked, self.threshold, latent, *self._how())

    def _how(self) -> tuple[float, bool]:
        return self.settings.bandwidth, self.settings.gradient_to == "all"


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, eps, to_all):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, theta)
        ctx.eps, ctx.to_all = eps, to_all
        return z * (z > theta)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        z, theta = ctx.saved_tensors
        at_jump = g * ((z - theta).abs() < ctx.eps / 2) * (theta / ctx.eps)
        to_z = g * (z > theta)
        return to_z + at_jump if ctx.to_all else to_z, -at_jump.sum(0), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, eps, to_all):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, theta)
        ctx.eps, ctx.to_all = eps, to_all
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        z, theta = ctx.saved_tensors
        at_jump = g * ((z - theta).abs() < ctx.eps / 2) / ctx.eps
        return at_jump if ctx.to_all else None, -at_jump.sum(0), None, None


class _JumpAt(torch.autograd.Function):
    """`_Jump` at the entries of a support, each with the threshold of its latent."""

    @staticmethod
    def forward(ctx, z, theta, latent, eps, to_all):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, theta, latent)
        ctx.eps, ctx.to_all = eps, to_all
        return z * (z > theta[latent])

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        z, theta, latent = ctx.saved_tensors
        own = theta[latent]
        at_jump = g * ((z - own).abs() < ctx.eps / 2) * (own / ctx.eps)
        to_z = g * (z > own)
        to_theta = torch.zeros_like(theta).index_add_(0, latent, at_jump).neg_()
        return to_z + at_jump if ctx.to_all else to_z, to_theta, None, None, None


class _StepAt(torch.autograd.Function):
    """`_Step` at the entries of a support."""

    @staticmethod
    def forward(ctx, z, theta, latent, eps, to_all):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, theta, latent)
        ctx.eps, ctx.to_all = eps, to_all
        return (z > theta[latent]).to(z.dtype)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        z, theta, latent = ctx.saved_tensors
        at_jump = g * ((z - theta[latent]).abs() < ctx.eps / 2) / ctx.eps
        to_theta = torch.zeros_like(theta).index_add_(0, latent, at_jump).neg_()
        return at_jump if ctx.to_all else None, to_theta, None, None, None
