"""How far one attention pattern is from another: KL in nats, row by row, with its gradient.

    KL(P || P^) of a query and a head = sum over keys s <= t of P_s (log P_s - log P^_s)

Keys after their query are out by a true -inf: with a finite number in its place (the released code
of QK transcoders has +1e-9) they would draw attention.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def later(pos: int, device: torch.device | None = None) -> Bool[Tensor, "query key"]:
    """Which keys come after their query."""
    return torch.ones(pos, pos, dtype=torch.bool, device=device).triu(1)


def log_pattern(scores: Float[Tensor, "*batch query key"]) -> Float[Tensor, "*batch query key"]:
    """Logarithm of the pattern that scores make; -inf where a key comes after its query."""
    hidden = later(scores.shape[-1], scores.device)
    return scores.masked_fill(hidden, -torch.inf).log_softmax(-1)


class TruePattern(NamedTuple):
    """A pattern that others are compared with."""

    share: Float[Tensor, "*batch query key"]
    """The pattern itself."""
    certainty: Float[Tensor, "*batch query"]
    """sum P log P of each row: its entropy, negated."""


def true_pattern(scores: Float[Tensor, "*batch query key"]) -> TruePattern:
    """What others are compared with, from its scores."""
    log = log_pattern(scores)
    share = log.exp()
    return TruePattern(share, torch.linalg.vecdot(share, _finite(log)))


def pattern_kl(
    true: TruePattern, scores: Float[Tensor, "*batch query key"]
) -> Float[Tensor, "*batch query"]:
    """KL from a pattern to the one that `scores` make, nats.

    Differentiable in the scores alone; the gradient of a row is P^ - P.
    """
    return _PatternKL.apply(true.share, true.certainty, scores)


def _finite(log: Tensor) -> Tensor:
    """Zeros, in place, for the keys that are out: 0 times -inf is no number."""
    return log.masked_fill_(later(log.shape[-1], log.device), 0.0)


class _PatternKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, share, certainty, scores):  # type: ignore[no-untyped-def]
        log = log_pattern(scores)
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(log.exp().sub_(share))
        return certainty - torch.linalg.vecdot(share, _finite(log))

    @staticmethod
    def backward(ctx, outer):  # type: ignore[no-untyped-def]
        (difference,) = ctx.saved_tensors
        return None, None, difference * outer[..., None]
