"""Probes of absorption: one logistic regression a letter on vectors, and on few latents.

The dense and the L1 ones are trained together by Adam as in SAEBench (weighted so that a letter's
words and all others count the same; the rate falls exponentially); the k-sparse ones, in few
numbers and unknowns, by Newton's method to the optimum.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F

from unweave.dictionaries.code import SparseCode


class ProbeSettings(BaseModel):
    """How probes of all letters are trained together; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: PositiveInt = 50
    """Passes over the words."""
    batch: PositiveInt = 4096
    """Words of a step."""
    batches: PositiveInt = 7
    """Steps of an epoch at least: with few words batches shrink, so that training is as long."""
    rate: PositiveFloat = 0.01
    """Adam's learning rate at the start."""
    end_rate: PositiveFloat = 1e-5
    """And after the last epoch."""
    decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    l1: NonNegativeFloat = 0.0
    """Weight of the mean over letters of |w|_1."""


class Probes(NamedTuple):
    """One linear probe a letter."""

    weight: Float[Tensor, "letters d"]
    bias: Float[Tensor, " letters"]

    def scores(self, x: Float[Tensor, "words d"]) -> Float[Tensor, "words letters"]:
        """Above zero: the probe says yes."""
        return x @ self.weight.T + self.bias


def train_probes(
    inputs: Float[Tensor, "words d"] | SparseCode,
    letter: Int[Tensor, " words"],
    n_letters: int,
    settings: ProbeSettings,
    *,
    seed: int = 0,
) -> Probes:
    """Probes of vectors or of whole codes, one against all others."""
    width = inputs.n_latents if isinstance(inputs, SparseCode) else inputs.shape[1]
    random = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(width)
    weight = ((torch.rand(width, n_letters, generator=random) * 2 - 1) * bound).requires_grad_()
    bias = ((torch.rand(n_letters, generator=random) * 2 - 1) * bound).requires_grad_()
    target = F.one_hot(letter, n_letters).float()
    positive = target.sum(0)
    loss_of = torch.nn.BCEWithLogitsLoss(
        pos_weight=(len(target) - positive) / positive.clamp_min(1)
    )
    adam = torch.optim.Adam([weight, bias], lr=settings.rate, weight_decay=settings.decay)
    fall = (settings.end_rate / settings.rate) ** (1 / settings.epochs)
    schedule = torch.optim.lr_scheduler.ExponentialLR(adam, fall)
    batch = min(settings.batch, math.ceil(len(target) / settings.batches))
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(target), generator=random).split(batch):
            loss = loss_of(_read(inputs, rows, weight) + bias, target[rows])
            loss = loss + settings.l1 * weight.abs().sum(0).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        schedule.step()
    return Probes(weight.detach().T.contiguous(), bias.detach())


def _read(inputs: Tensor | SparseCode, rows: Tensor, weight: Tensor) -> Tensor:
    if isinstance(inputs, Tensor):
        return inputs[rows] @ weight
    counts = inputs.support.offsets.diff()[rows]
    ends = counts.cumsum(0)
    begin = ends - counts
    shift = (inputs.support.offsets[rows] - begin).repeat_interleave(counts)
    entry = torch.arange(int(counts.sum())) + shift
    return F.embedding_bag(
        inputs.support.latent[entry],
        weight,
        begin,
        mode="sum",
        per_sample_weights=inputs.value[entry].float(),
    )


class SparseProbe(NamedTuple):
    """A probe of few latents for one letter."""

    latents: Int[Tensor, " k"]
    weight: Float[Tensor, " k"]
    bias: float

    def scores(self, acts: Float[Tensor, "words k"]) -> Float[Tensor, " words"]:
        """Of the activations of its latents; above zero: yes."""
        return acts @ self.weight + self.bias


def fit_sparse_probe(
    latents: Int[Tensor, " k"], acts: Float[Tensor, "words k"], yes: Bool[Tensor, " words"]
) -> SparseProbe:
    """The minimum of |w|^2 / 2 + sum_n c_n log(1 + exp(-y_n z_n)), c_n = words / (2 words of n's
    class): what scikit-learn's balanced `LogisticRegression` is at the end of its search.
    """
    x = torch.cat([acts.double(), acts.new_ones(len(acts), 1).double()], dim=1)
    count = yes.sum().clamp(1, len(yes) - 1)
    share = torch.where(yes, len(yes) / (2 * count), len(yes) / (2 * (len(yes) - count))).double()
    sign = torch.where(yes, 1.0, -1.0).double()
    penalty = torch.ones(x.shape[1], dtype=torch.float64)
    penalty[-1] = 0
    w = torch.zeros(x.shape[1], dtype=torch.float64)

    def loss(at: Tensor) -> float:
        fit = (share * F.softplus(-sign * (x @ at))).sum()
        return float(fit + (penalty * at.square()).sum() / 2)

    for _ in range(100):
        p = torch.sigmoid(x @ w)
        slope = x.T @ (share * (p - yes.double())) + penalty * w
        bend = (x.T * (share * p * (1 - p))) @ x + torch.diag(penalty)
        step = torch.linalg.solve(bend + 1e-10 * torch.eye(len(w)).double(), slope)
        here, length = loss(w), 1.0
        while loss(w - length * step) > here and length > 1e-8:
            length /= 2
        w = w - length * step
        if slope.abs().max() < 1e-6 * len(yes):
            break
    return SparseProbe(latents, w[:-1].float(), float(w[-1]))


def f1(said: Bool[Tensor, " words"], true: Bool[Tensor, " words"]) -> float:
    """Harmonic mean of precision and recall; 0 where nothing is said or true."""
    both = int((said & true).sum())
    return 2 * both / max(1, int(said.sum()) + int(true.sum()))
