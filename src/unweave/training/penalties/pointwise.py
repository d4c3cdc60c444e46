"""Penalties that are a sum over latents of one function of `u = f ||d||`, zero at zero.

The steeper at zero and the flatter beyond, the less a penalty shrinks what it does not remove: L1
charges a strong activation in proportion, the others ever less (methods: Lp of Wright & Sharkey's
agenda, sqrt as in QK transcoders, tanh of Jermyn et al. 2024).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat
from torch import Tensor

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.shares import shares
from unweave.training.penalties.strengths import Strengths


class L1(Chosen):
    """Sum of u."""

    kind: Literal["l1"] = "l1"

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows; `done` is the share of the run behind us."""
        return at.u.sum() / at.rows


class Lp(Chosen):
    """Sum of (u + eps)^p - eps^p, 0 < p < 1; p may fall over the run (p-annealing).

    While p falls, the sum is divided by what it grew by since p was 1 on the same strengths, so
    that annealing changes the shape of the penalty and not its weight (Karvonen et al. 2024 do so
    at each change of p; here at every step).
    """

    kind: Literal["lp"] = "lp"
    p: float = Field(default=0.5, gt=0, le=1)
    """The exponent, at the end of the run where it is annealed."""
    eps: PositiveFloat = 1e-3
    """Keeps the gradient finite at zero."""
    anneal_from: float | None = Field(default=None, ge=0, lt=1)
    """Share of the run at which p starts to fall from 1 to `p`; None: p throughout."""

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows."""
        if self.anneal_from is None:
            return _power(at, self.p, self.eps)
        fallen = min(1.0, max(0.0, (done - self.anneal_from) / (1 - self.anneal_from)))
        p = 1 - fallen * (1 - self.p)
        total = _power(at, p, self.eps)
        with torch.no_grad():
            bills = torch.stack([at.u.sum() / at.rows, total])
            straight, bent = shares().mean(shares().total(bills))
            weight = straight / bent.clamp_min(1e-12)
        return total * weight


class Sqrt(Chosen):
    """Sum of sqrt(u + eps) - sqrt(eps)."""

    kind: Literal["sqrt"] = "sqrt"
    eps: PositiveFloat = 1e-4
    """Keeps the gradient finite at zero."""

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows."""
        return _power(at, 0.5, self.eps)


class Tanh(Chosen):
    """Sum of tanh(c u): close to counting once c u is large (Anthropic, January 2025: c = 4)."""

    kind: Literal["tanh"] = "tanh"
    c: PositiveFloat = 4.0
    """How soon it saturates."""

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows."""
        return torch.tanh(self.c * at.u).sum() / at.rows


class Log(Chosen):
    """Sum of log(1 + u / eps)."""

    kind: Literal["log"] = "log"
    eps: PositiveFloat = 0.1
    """Strength at which it bends."""

    def of(self, at: Strengths, done: float) -> Float[Tensor, ""]:
        """Mean over rows."""
        return torch.log1p(at.u / self.eps).sum() / at.rows


def _power(at: Strengths, p: float, eps: float) -> Tensor:
    return ((at.u + eps).pow(p) - eps**p).sum() / at.rows
