"""Modular addition: a network whose features are known to be Fourier modes, trained or hand-set.

    z = W_a E[a] + W_b E[b]        logits = U act(z)        target (a + b) mod p

Trained with weight decay, E ends in few frequencies, a plane for each (Nanda et al. 2023). The
hand-set network has exactly those it is given. With act(z) = z^2, E[a] = (cos w a, sin w a) for
every w = 2 pi k / p, and neurons over phases u, v that hold

    z = cos(w a + u) + cos(w b + v)        U = cos(w c + u + v)

the sum over u and v in {0, 1, 2} 2 pi / 3 cancels every term but one (after Gromov 2023, whose
phases are drawn at random and cancel on average):

    logit_c = (9 / 2) sum_k cos(w (a + b - c))
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from unweave.errors import UserError
from unweave.validate.worlds.features import DATA, WORLD, seeded

PHASES = 3
"""Phases of either argument in the hand-set network; 3 x 3 neurons a frequency."""


class ModularSettings(BaseModel):
    """The network and its training (defaults learn p = 59 to the last sum in ten seconds)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    p: int = Field(default=59, ge=3)
    """The modulus."""
    width: PositiveInt = 32
    """Dimensions of the embedding."""
    neurons: PositiveInt = 128
    """ReLU neurons."""
    train_share: float = Field(default=0.6, gt=0, le=1)
    """Share of all p^2 sums that are learned from; the rest are held out."""
    steps: PositiveInt = 3000
    """Steps of AdamW, each on all sums that are learned from."""
    lr: PositiveFloat = 1e-2
    """Learning rate."""
    weight_decay: NonNegativeFloat = 1.0
    """AdamW's weight decay; what makes it leave memorising behind."""
    labels: Literal["sum", "random"] = "sum"
    """The task, or a control in which there is nothing to find: a random answer for every pair."""


class ModularNetwork(nn.Module):
    """See the module; `pre` and `hidden` are modules, so that z and act(z) are sites."""

    def __init__(self, p: int, width: int, neurons: int, act: Literal["quadratic", "relu"]) -> None:
        super().__init__()
        self.p = p
        self.E = nn.Embedding(p, width)
        self.W_a = nn.Linear(width, neurons, bias=False)
        self.W_b = nn.Linear(width, neurons, bias=False)
        self.pre = nn.Identity()
        self.hidden: nn.Module = _Square() if act == "quadratic" else nn.ReLU()
        self.U = nn.Linear(neurons, p, bias=False)
        self.requires_grad_(False)

    def forward(self, pairs: Int[Tensor, "batch 2"]) -> Float[Tensor, "batch p"]:
        """Logits of every possible sum."""
        z = self.pre(self.W_a(self.E(pairs[:, 0])) + self.W_b(self.E(pairs[:, 1])))
        return self.U(self.hidden(z))

    def tables(self) -> tuple[Float[Tensor, "p neurons"], Float[Tensor, "p neurons"]]:
        """What every a, and every b, adds to z."""
        return self.E.weight @ self.W_a.weight.T, self.E.weight @ self.W_b.weight.T


class _Square(nn.Module):
    def forward(self, z: Float[Tensor, "batch neurons"]) -> Float[Tensor, "batch neurons"]:
        return z.square()


def all_pairs(p: int) -> Int[Tensor, "pairs 2"]:
    """Every (a, b), a first."""
    return torch.cartesian_prod(torch.arange(p), torch.arange(p))


def targets(settings: ModularSettings, *, seed: int) -> Int[Tensor, " pairs"]:
    """The answer to every pair of `all_pairs`."""
    if settings.labels == "random":
        generator = seeded(WORLD, seed)
        return torch.randint(settings.p, (settings.p**2,), generator=generator)
    return all_pairs(settings.p).sum(1) % settings.p


def held_out(settings: ModularSettings, *, seed: int) -> Int[Tensor, " others"]:
    """Places in `all_pairs` that training does not see."""
    n = settings.p**2
    order = torch.randperm(n, generator=seeded(DATA, seed))
    return order[round(settings.train_share * n) :].sort().values


def untrained_modular(settings: ModularSettings, *, seed: int) -> ModularNetwork:
    """The network before training."""
    model = ModularNetwork(settings.p, settings.width, settings.neurons, "relu")
    generator = seeded(WORLD, seed, 1)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(drawn * parameter.shape[1] ** -0.5)
    return model


def train_modular(settings: ModularSettings, *, seed: int) -> ModularNetwork:
    """Full-batch cross-entropy; its parameters are frozen afterwards."""
    model = untrained_modular(settings, seed=seed)
    pairs, answer = all_pairs(settings.p), targets(settings, seed=seed)
    seen = torch.ones(len(pairs), dtype=torch.bool)
    seen[held_out(settings, seed=seed)] = False
    pairs, answer = pairs[seen], answer[seen]
    model.requires_grad_(True)
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    for step in range(settings.steps):
        for group in adam.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / 20)
        loss = F.cross_entropy(model(pairs), answer)
        adam.zero_grad()
        loss.backward()
        adam.step()
    adam.zero_grad()
    return model.requires_grad_(False)


def exact_modular(p: int, frequencies: Sequence[int]) -> ModularNetwork:
    """The hand-set network: quadratic, exact for all pairs, 9 neurons for each frequency.

    Raises:
        UserError: a frequency that is not one of 1 to (p - 1) / 2, or p is even.
    """
    highest = (p - 1) // 2
    known = sorted(set(frequencies))
    if not known or known[0] < 1 or known[-1] > highest or p % 2 == 0:
        raise UserError(
            f"The hand-set network takes an odd modulus and frequencies from 1 to {highest}, not"
            f" {list(frequencies)} at {p}"
        )
    phase = 2 * math.pi * torch.arange(PHASES, dtype=torch.float64) / PHASES
    u, v = phase.repeat_interleave(PHASES), phase.repeat(PHASES)
    turn = 2 * math.pi * torch.arange(p, dtype=torch.float64) / p
    model = ModularNetwork(p, 2 * len(known), PHASES**2 * len(known), "quadratic")
    for matrix in (model.W_a, model.W_b):
        matrix.weight.zero_()
    for at, k in enumerate(known):
        plane, own = slice(2 * at, 2 * at + 2), slice(at * PHASES**2, (at + 1) * PHASES**2)
        model.E.weight[:, plane] = _circle(k * turn)
        # cos(w a + u) = cos(w a) cos(u) - sin(w a) sin(u)
        model.W_a.weight[own, plane] = _circle(-u)
        model.W_b.weight[own, plane] = _circle(-v)
        model.U.weight[:, own] = (k * turn[:, None] + u + v).cos().float()
    return model


def _circle(angle: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    return torch.stack([angle.cos(), angle.sin()], 1).float()


@torch.no_grad()
def accuracy(
    model: ModularNetwork, answer: Int[Tensor, " pairs"], at: Int[Tensor, " some"] | None = None
) -> float:
    """Share of right answers, over all pairs or those at some places."""
    right = model(all_pairs(model.p)).argmax(1) == answer
    return (right if at is None else right[at]).float().mean().item()
