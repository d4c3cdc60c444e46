"""Which outcomes nothing beats, and a picture of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from unweave.artifact.pictures import plotting, save_picture
from unweave.training.trial import Outcome

Item = TypeVar("Item")

STRENGTH_BITS = 6
"""Bits for the strength of an active latent."""


def code_bits(outcome: Outcome) -> float:
    """Bits of a vector's code: which latents are active out of n, and how strongly."""
    n, k = outcome.trial.n_latents, outcome.l0
    which = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(max(n - k, 0) + 1)) / math.log(2)
    return which + STRENGTH_BITS * k


def unbeaten(items: Iterable[Item], cost: Callable[[Item], tuple[float, float]]) -> list[Item]:
    """Items that no other is as good as in both costs and better in one, by the first cost.

    Lower is better. Of items with equal costs the first stands for all; a cost that is not a
    number, or infinite, beats nothing.
    """
    front: list[Item] = []
    lowest = float("inf")
    finite = [item for item in items if all(map(math.isfinite, cost(item)))]
    for item in sorted(finite, key=cost):
        if cost(item)[1] < lowest:
            front.append(item)
            lowest = cost(item)[1]
    return front


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with a lower FVU than all that need no more bits, cheapest first."""
    return unbeaten(outcomes, lambda outcome: (code_bits(outcome), outcome.fvu))


def draw_pareto(outcomes: Sequence[Outcome], path: Path) -> None:
    """FVU against L0 and against bits of the code, one line a width, as a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    plt = plotting("sweep")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for n in sorted({o.trial.n_latents for o in outcomes}):
        mine = [o for o in outcomes if o.trial.n_latents == n]
        left.plot([o.l0 for o in mine], [o.fvu for o in mine], "o", markersize=3, label=f"n={n}")
        right.plot([code_bits(o) for o in mine], [o.fvu for o in mine], "o", markersize=3)
    front = pareto_front(outcomes)
    right.plot([code_bits(o) for o in front], [o.fvu for o in front], "-", color="grey", zorder=0)
    left.set(xlabel="L0", ylabel="held-out FVU", xscale="log", yscale="log")
    right.set(xlabel="bits of the code per vector", xscale="log", title="grey: nothing beats these")
    left.legend(frameon=False, fontsize=8)
    save_picture(figure, path)
    plt.close(figure)
