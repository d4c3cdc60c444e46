"""Whether a learning rate found at one width holds at another.

Two looks at it. The coordinate check of the maximal-update literature (Yang & Hu 2021): after one
step, do activations and their updates keep their size while the number of latents F grows? And the
measured one: does the best rate move with F, and what does each rule lose that foretells how?

In an autoencoder F is the hidden width and the input's width d stays. Where every latent takes part
in the output (ReLU before the penalty has worked), one Adam step moves it in proportion to F, and
the rule lr ~ 1 / fan-in = 1 / F holds it still. Where k latents are chosen, k of them move it at
any F; what grows is only how many runners-up lie close enough to take their place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec
from unweave.errors import UserError
from unweave.training.batches import VectorBatch
from unweave.training.laws.data import slope
from unweave.training.schedule import Schedule
from unweave.training.trainee import Trainee, TraineeSettings

WIDTHS = (256, 512, 1024, 2048, 4096)
"""Widths of the coordinate check."""
TOLERANCE = 0.5
"""A size may go with a power of F below this one, with which a sum of F independent terms grows."""
RULES: Mapping[str, float] = {"constant": 0.0, "1/sqrt(F)": -0.5, "1/F": -1.0}
"""Rules of transfer by the power of F that the rate follows."""


class CoordinateCheck(NamedTuple):
    """Root mean squares by width, and the power of F that each follows."""

    widths: tuple[int, ...]
    """The widths."""
    sizes: dict[str, tuple[float, ...]]
    """`pre`, `y`: of active pre-activations and of the output at the start; `pre_update`,
    `y_update`: of their change by the steps, on the entries that were active at the start."""
    slopes: dict[str, float]
    """Slope of log size against log F."""

    @property
    def flagged(self) -> tuple[str, ...]:
        """What does not keep its size."""
        return tuple(name for name, power in self.slopes.items() if not abs(power) < TOLERANCE)


def coordinate_check(
    spec: Callable[[int], DictionarySpec],
    vectors: Float[Tensor, "rows d"],
    *,
    rate: Callable[[int], float],
    widths: Sequence[int] = WIDTHS,
    settings: TraineeSettings | None = None,
    steps: int = 1,
    seed: int = 0,
) -> CoordinateCheck:
    """Take `steps` at `rate(F)` at every width, on the same vectors, and measure what moves.

    `spec(F)` gives an autoencoder with F latents; its one site is given the vectors.
    """
    settings = settings or TraineeSettings()
    sizes: dict[str, list[float]] = {}
    for width in widths:
        chosen = settings.model_copy(
            update={"lr": rate(width), "schedule": Schedule(shape="constant", warmup=0.0)}
        )
        for name, size in _sizes(spec(width), vectors, chosen, steps, seed).items():
            sizes.setdefault(name, []).append(size)
    log_width = torch.tensor([float(width) for width in widths]).log()
    slopes = {
        name: slope(log_width, torch.tensor(column).clamp_min(1e-30).log())
        for name, column in sizes.items()
    }
    return CoordinateCheck(tuple(widths), {n: tuple(c) for n, c in sizes.items()}, slopes)


def _sizes(
    spec: DictionarySpec, vectors: Tensor, settings: TraineeSettings, steps: int, seed: int
) -> dict[str, float]:
    dictionary = Dictionary(spec)
    batch = VectorBatch({spec.reads[0].site: vectors})
    trainee = Trainee(
        {"checked": dictionary}, settings, steps=max(steps, 1), batch=len(vectors), seed=seed
    )
    trainee.begin(batch)
    with torch.no_grad():
        x = dictionary.normalise(vectors * dictionary.input_scale)[0]
        first = dictionary.run(x)
        support = first.sparse_code.support
        before = _pre(dictionary, x)[support.row, support.latent]
    for _ in range(steps):
        trainee.step(batch)
    with torch.no_grad():
        moved = _pre(dictionary, x)[support.row, support.latent] - before
        y_moved = dictionary.run(x).y - first.y
    return {
        "pre": _rms(before),
        "y": _rms(first.y),
        "pre_update": _rms(moved),
        "y_update": _rms(y_moved),
    }


def _pre(dictionary: Dictionary, x: Tensor) -> Tensor:
    read = x - dictionary.b_dec if dictionary.spec.pre_bias else x
    return dictionary.encoder.dense(read)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


class RateCurve(NamedTuple):
    """Runs that differ in their learning rate alone."""

    n: int
    """Latents."""
    k: float
    """Active latents per vector."""
    tokens: float
    """Vectors trained on."""
    batch: int
    """Vectors per step."""
    losses: Mapping[float, float]
    """FVU by learning rate."""

    def best(self) -> tuple[float, float]:
        """The best rate and its FVU, by a parabola in log-log through the best and its neighbours.

        At an end of the grid the best measured rate itself.
        """
        rates, losses = self._sorted()
        at = int(np.argmin(losses))
        if not 0 < at < len(rates) - 1:
            return float(np.exp(rates[at])), float(np.exp(losses[at]))
        x, y = rates[at - 1 : at + 2], losses[at - 1 : at + 2]
        a, b, c = np.polyfit(x - x[1], y, 2)
        step = float(np.clip(-b / (2 * a), x[0] - x[1], x[2] - x[1])) if a > 0 else 0.0
        return float(np.exp(x[1] + step)), float(np.exp(a * step**2 + b * step + c))

    def loss_at(self, rate: float) -> float:
        """FVU at a rate: in log-log, a parabola through the three measured ones around it, and
        straight on beyond the ends."""
        rates, losses = self._sorted()
        if len(rates) < 2:
            raise UserError("A curve of one learning rate says nothing about another: measure two")
        x = np.log(rate)
        if len(rates) == 2 or not rates[0] <= x <= rates[-1]:
            at = 1 if x < rates[0] else len(rates) - 1
            share = (x - rates[at - 1]) / (rates[at] - rates[at - 1])
            return float(np.exp(losses[at - 1] + share * (losses[at] - losses[at - 1])))
        middle = int(np.clip(np.argmin(np.abs(rates - x)), 1, len(rates) - 2))
        near = slice(middle - 1, middle + 2)
        found = np.polyfit(rates[near] - x, losses[near], 2)
        return float(np.exp(found[2]))

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        usable = sorted((r, f) for r, f in self.losses.items() if 0 < f < float("inf"))
        if not usable:
            raise UserError(f"No run with n={self.n}, k={self.k} ended in a usable FVU")
        return np.log([r for r, _ in usable]), np.log([f for _, f in usable])


class RateLaw(BaseModel):
    """Best rate = rate (n/1024)^n_power (k/16)^k_power (steps/256)^steps_power.

    The batch comes in through the steps: tokens / batch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rate: float
    """At n=1024, k=16 and 256 steps."""
    n_power: float
    """Power of the width; its interval says which rule of transfer holds."""
    k_power: float
    """Power of k."""
    steps_power: float
    """Power of the number of steps."""
    intervals: dict[str, tuple[float, float]]
    """90 % of resamples of the curves, by the names above."""
    scatter: float
    """Standard deviation of log best rate around the law."""

    def __call__(self, n: float, k: float, steps: float) -> float:
        """The rate it predicts."""
        return (
            self.rate
            * (n / 1024) ** self.n_power
            * (k / 16) ** self.k_power
            * (steps / 256) ** self.steps_power
        )


def fit_rate_law(curves: Sequence[RateCurve], *, resamples: int = 200, seed: int = 0) -> RateLaw:
    """Least squares in logs over the curves' best rates; what never varies gets the power 0."""
    rows = [
        [1, np.log(c.n / 1024), np.log(c.k / 16), np.log(c.tokens / c.batch / 256)] for c in curves
    ]
    design, target = np.array(rows, float), np.log([c.best()[0] for c in curves])
    if len(curves) < 4:
        raise UserError(f"{len(curves)} curves are too few for a law of the rate: give 4 or more")
    found = _least_squares(design, target)
    random = np.random.default_rng(seed)
    drawn = [random.integers(0, len(curves), len(curves)) for _ in range(resamples)]
    spread = np.array([_least_squares(design[rows], target[rows]) for rows in drawn])
    low, high = np.quantile(spread, [0.05, 0.95], axis=0)
    names = ("rate", "n_power", "k_power", "steps_power")
    values = dict(zip(names, [float(np.exp(found[0])), *map(float, found[1:])], strict=True))
    ends = zip(names, low, high, strict=True)
    bounds = {
        name: (float(np.exp(a)), float(np.exp(b))) if name == "rate" else (float(a), float(b))
        for name, a, b in ends
    }
    return RateLaw(
        **values, intervals=bounds, scatter=float(np.std(target - design @ found, ddof=0))
    )


def rule_losses(
    narrow: RateCurve, wide: RateCurve, rules: Mapping[str, float] = RULES
) -> dict[str, float]:
    """What each rule loses: log FVU at the rate carried over from `narrow`, less the best's."""
    rate, _ = narrow.best()
    _, best = wide.best()
    return {
        name: float(np.log(wide.loss_at(rate * (wide.n / narrow.n) ** power) / best))
        for name, power in rules.items()
    }


def _least_squares(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    # The smallest solution: a column that never varies is as good as absent.
    centred = design.copy()
    centred[:, 1:] -= design[:, 1:].mean(0)
    solved = np.linalg.lstsq(centred, target, rcond=1e-9)[0]
    solved[0] -= design[:, 1:].mean(0) @ solved[1:]
    return solved
