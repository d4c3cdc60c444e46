"""Which outcomes nothing beats, and a picture of them."""

import math
from collections.abc import Sequence
from pathlib import Path

from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.training.trial import Outcome

STRENGTH_BITS = 6
"""Bits for the strength of an active latent."""


def code_bits(outcome: Outcome) -> float:
    """Bits of a vector's code: which latents are active out of n, and how strongly."""
    n, k = outcome.trial.n_latents, outcome.l0
    which = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(max(n - k, 0) + 1)) / math.log(2)
    return which + STRENGTH_BITS * k


def pareto_front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes with a lower FVU than all that need no more bits, cheapest first."""
    front: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda o: (code_bits(o), o.fvu)):
        if outcome.fvu < float("inf") and (not front or outcome.fvu < front[-1].fvu):
            front.append(outcome)
    return front


def draw_pareto(outcomes: Sequence[Outcome], path: Path) -> None:
    """FVU against L0 and against bits of the code, one line a width, as a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "The Pareto plot needs matplotlib; install it with: pip install 'unweave[sweep]'"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

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
    with new_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    plt.close(figure)
