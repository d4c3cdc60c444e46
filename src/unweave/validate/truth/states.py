"""Whether hidden states are in a network's vectors, and whether a dictionary has latents for them.

Beliefs are regressed on vectors (ridge; fitted on one set of rows, scored on another); a belief
that the vectors hold linearly has R^2 near one (Shai et al. 2024). Latents are held to the true
states themselves: AUROC and F1 of the best latent for each state and of a one-to-one matching,
chosen on one half of the held-out vectors and scored on the other.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.dictionaries.code import Coder
from unweave.errors import UserError
from unweave.validate.recovery import one_to_one

RIDGE = 1e-4
"""Penalty of the regression, in units of the vectors' mean variance per dimension."""
MOST_LATENTS = 2048
"""Latents that are ranked; of more, those that fire most often."""


class StateLatents(NamedTuple):
    """How well latents tell states, on vectors on which none was chosen."""

    states: int
    """States that occur in both halves."""
    auroc: float
    """Mean over states of the AUROC of the latent that told the state best."""
    f1: float
    """Mean over states of the F1 of firing, for the latent with the best F1."""
    matched_f1: float
    """The same where no latent may stand for two states (a state without one counts 0)."""
    shuffled_auroc: float
    """`auroc` with the states dealt out anew among the vectors: what choosing alone gives."""
    shuffled_f1: float
    """`f1` with them dealt out anew: what the best latent gives for how often it fires."""


def belief_r2(
    x: Float[Tensor, "rows d"],
    belief: Float[Tensor, "rows states"],
    held_out: Float[Tensor, "others d"],
    truth: Float[Tensor, "others states"],
) -> float:
    """Share of the beliefs' variance that a linear map of the vectors explains, held out."""
    mean, offset = x.mean(0), belief.mean(0)
    centred = (x - mean).double()
    gram = centred.T @ centred
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype)
    map_ = torch.linalg.solve(gram, centred.T @ (belief - offset).double())
    said = (held_out - mean).double() @ map_ + offset
    left = (truth - said).square().sum()
    return (1 - left / (truth - truth.mean(0)).square().sum()).item()


@torch.no_grad()
def state_latents(
    coder: Coder,
    x: Float[Tensor, "rows d"],
    states: Int[Tensor, " rows"],
    *,
    seed: int = 0,
    batch: int = 4096,
) -> StateLatents:
    """Hold a coder's latents to the states; a latent of both signs is two.

    Raises:
        UserError: fewer than two states occur in both halves.
    """
    half = len(x) // 2
    both = [n for n in states.unique().tolist() if min(_in_halves(states == n, half)) > 0]
    if len(both) < 2:
        raise UserError(
            "Latents are held to states of which at least two occur in both halves of the vectors;"
            f" here {len(both)} do: give more vectors"
        )
    value = _both_signs(torch.cat([coder.encode(rows).dense() for rows in x.split(batch)]))
    if value.shape[1] > MOST_LATENTS:
        value = value[:, (value > 0).sum(0).topk(MOST_LATENTS).indices]
    truth = torch.stack([states == n for n in both], 1)
    generator = torch.Generator().manual_seed(seed)
    dealt = truth[torch.randperm(len(x), generator=generator)]
    found, chance = _held(value, truth, half), _held(value, dealt, half)
    return StateLatents(len(both), *found, chance[0], chance[1])


def auroc(
    value: Float[Tensor, "rows latents"], truth: Bool[Tensor, "rows states"]
) -> Float[Tensor, "states latents"]:
    """Chance that a row with the state has more of the latent than one without; ties count half."""
    ordered = value.T.contiguous().sort(1).values
    wanted = value.T.contiguous()
    below = torch.searchsorted(ordered, wanted)
    upto = torch.searchsorted(ordered, wanted, right=True)
    rank = (below + upto).double() / 2
    there = truth.double().T
    n = there.sum(1, keepdim=True)
    # Halves of whole numbers until the last division, so that the result is exact to one rounding.
    return (there @ rank.T - n * n / 2) / (n * (len(value) - n))


def firing_f1(
    value: Float[Tensor, "rows latents"], truth: Bool[Tensor, "rows states"]
) -> Float[Tensor, "states latents"]:
    """F1 of "the latent fires" as a test for the state."""
    fires, there = (value > 0).double(), truth.double()
    either = there.sum(0)[:, None] + fires.sum(0)
    return 2 * (there.T @ fires) / either.clamp_min(1)


def _held(value: Tensor, truth: Tensor, half: int) -> tuple[float, float, float]:
    """Chosen on the first half, scored on the second."""
    choosing, scoring = (value[:half], truth[:half]), (value[half:], truth[half:])
    state = torch.arange(truth.shape[1])
    by_auroc = auroc(*scoring)[state, auroc(*choosing).argmax(1)].mean().item()
    first, second = firing_f1(*choosing), firing_f1(*scoring)
    by_f1 = second[state, first.argmax(1)].mean().item()
    row, column = one_to_one(first.float(), bar=0.0)
    matched = second[row, column].sum().item() / truth.shape[1]
    return by_auroc, by_f1, matched


def _both_signs(value: Tensor) -> Tensor:
    if not bool((value < 0).any()):
        return value
    return torch.cat([value.clamp_min(0), (-value).clamp_min(0)], 1)


def _in_halves(there: Tensor, half: int) -> tuple[int, int]:
    return int(there[:half].sum()), int(there[half:].sum())
