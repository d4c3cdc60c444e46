"""Logistic probes: the exact optimum for a few columns, and the published training for many.

`exact_probe` minimises the log loss with an L2 penalty, as scikit-learn's `LogisticRegression(C=1)`
does, by Newton's method (iteratively reweighted least squares): convex, so where one converges to,
the other does. `trained_probe` is the AdamW training that sae-bench 0.6.0 uses where weights of all
columns are needed. It keeps the epoch that is best on the test examples, so its accuracy is a
little too high; kept, because SCR and TPP numbers depend on it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional as F


class Probe(NamedTuple):
    """Says yes where `x . weight + bias` is positive."""

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, ""]

    def accuracy(self, x: Float[Tensor, "rows d"], yes: Bool[Tensor, " rows"]) -> float:
        """Share of the rows that it gets right."""
        said = x.to(self.weight) @ self.weight + self.bias > 0
        return (said == yes).double().mean().item()


class Task(NamedTuple):
    """What a probe is to tell apart: places of texts, shuffled, and which of them are a yes."""

    which: Int[Tensor, " texts"]
    yes: Bool[Tensor, " texts"]


class TrainedProbeSettings(BaseModel):
    """How a probe on many columns is trained; defaults as for SCR and TPP."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    batch: PositiveInt = 16
    """Examples in a step; the published text warns that SCR depends on it."""
    epochs: PositiveInt = 20
    """Most passes over the examples."""
    lr: PositiveFloat = 1e-3
    """Learning rate of AdamW, whose weight decay is 0.01."""
    l1: NonNegativeFloat = 1e-3
    """Weight of the sum of absolute weights."""
    patience: PositiveInt = 20
    """Epochs without a better test accuracy before it stops."""


def exact_probe(
    x: Float[Tensor, "rows d"], yes: Bool[Tensor, " rows"], *, C: float = 1.0, steps: int = 50
) -> Probe:
    """The minimum of C sum_i log loss_i + |weight|^2 / 2; the bias is not penalised."""
    columns = torch.cat([x.double(), x.new_ones(len(x), 1).double()], 1)
    target = yes.double()
    ridge = torch.ones(columns.shape[1], dtype=torch.float64, device=x.device)
    ridge[-1] = 1e-9  # examples of one label alone would send the bias to infinity
    w = torch.zeros_like(ridge)
    loss = _loss(columns, target, ridge, w, C)
    for _ in range(steps):
        p = torch.sigmoid(columns @ w)
        slope = C * columns.T @ (p - target) + ridge * w
        curve = C * (columns * (p * (1 - p))[:, None]).T @ columns + torch.diag(ridge)
        step = torch.linalg.solve(curve, slope)
        for _ in range(30):  # a whole step may overshoot where the curve is flat
            new = _loss(columns, target, ridge, w - step, C)
            if new <= loss:
                break
            step = step / 2
        done = loss - new < 1e-12 * max(loss, 1.0)
        if new <= loss:
            w, loss = w - step, new
        if done:
            break
    return Probe(w[:-1], w[-1])


def _loss(columns: Tensor, target: Tensor, ridge: Tensor, w: Tensor, C: float) -> float:
    log_loss = F.binary_cross_entropy_with_logits(columns @ w, target, reduction="sum")
    return (C * log_loss + (ridge * w * w).sum() / 2).item()


def trained_probe(
    train: tuple[Float[Tensor, "rows d"], Bool[Tensor, " rows"]],
    test: tuple[Float[Tensor, "test_rows d"], Bool[Tensor, " test_rows"]],
    settings: TrainedProbeSettings,
    generator: torch.Generator,
) -> Probe:
    """AdamW on the mean log loss; of all epochs the first that is best on the test examples."""
    x, target = train[0], train[1].to(train[0].dtype)
    bound = x.shape[1] ** -0.5  # as torch.nn.Linear begins
    begin = (torch.rand(x.shape[1] + 1, generator=generator) * 2 - 1) * bound
    weight, bias = (p.to(x).requires_grad_() for p in (begin[:-1], begin[-1]))
    optimizer = torch.optim.AdamW([weight, bias], lr=settings.lr)
    best, best_accuracy, waited = Probe(weight.detach().clone(), bias.detach().clone()), 0.0, 0
    with torch.enable_grad():
        for _ in range(settings.epochs):
            for batch in torch.randperm(len(x), generator=generator).split(settings.batch):
                logits = x[batch] @ weight + bias
                loss = F.binary_cross_entropy_with_logits(logits, target[batch])
                if settings.l1:
                    loss = loss + settings.l1 * weight.abs().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            now = Probe(weight.detach().clone(), bias.detach().clone())
            accuracy = now.accuracy(*test)
            waited = 0 if accuracy > best_accuracy else waited + 1
            if accuracy > best_accuracy:
                best, best_accuracy = now, accuracy
            if waited >= settings.patience:
                break
    return best


def nearest_columns(
    x: Float[Tensor, "rows d"], yes: Bool[Tensor, " rows"], k: int
) -> Int[Tensor, " k"]:
    """The k columns whose means differ most between yes and no, by absolute difference."""
    apart = (x[yes].mean(0) - x[~yes].mean(0)).abs()
    return apart.argsort(descending=True, stable=True)[:k]


def told_apart(
    yes: Int[Tensor, " yes"], no: Int[Tensor, " no"], generator: torch.Generator
) -> Task:
    """Texts at these places against those, in random order."""
    which = torch.cat([yes, no])
    order = torch.randperm(len(which), generator=generator)
    return Task(which[order], order < len(yes))


def one_against_others(
    classes: Int[Tensor, " texts"], place: int, generator: torch.Generator
) -> Task:
    """All texts of a class and as many of the others, evenly from each, in random order."""
    mine = (classes == place).nonzero()[:, 0]
    others = [c for c in classes.unique().tolist() if c != place]
    each = -(-len(mine) // len(others))
    drawn = []
    for other in others:
        there = (classes == other).nonzero()[:, 0]
        drawn.append(there[torch.randperm(len(there), generator=generator)[:each]])
    rest = torch.cat(drawn)
    rest = rest[torch.randperm(len(rest), generator=generator)[: len(mine)]]
    return told_apart(mine, rest, generator)
