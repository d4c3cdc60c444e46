"""What QK transcoders are trained on (Wynroe & Sharkey 2024): patterns, in three combinations.

    loss = 3 KL(P || P(q^, k^)) + KL(P || P(q, k^)) + KL(P || P(q^, k)) + lambda [R(c_Q) + R(c_K)]
    R(c) = sum_i sqrt(c_i ||W_dec_i|| + 1e-7)

KL is the mean over batch, heads and queries (the first query, which sees itself alone, left out).
The published R is summed over the batch; here it is the mean over tokens, so that lambda does not
depend on the batch. With JumpReLU a count of active features may take the place of R. With an
exponent below 1 each query's KL counts by its root: the many queries that are almost right, whose
most attended key hangs by little, then weigh as much as the few that are far off.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat
from torch import Tensor

from unweave.dictionaries.activation.jumprelu import JumpReLUActivation
from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.dictionaries.attention.qk_transcoder import QKPass, QKTranscoder, SidePass, Which
from unweave.errors import UserError
from unweave.subject.scores import scores
from unweave.training.attention.pattern_kl import pattern_kl, true_pattern

_INSIDE_ROOT = 1e-7
_LEAST_KL = 1e-7
"""Nats under an exponent, so that its slope is bounded; rounding may take a KL below zero."""


class QKLossSettings(BaseModel):
    """Weights of the terms."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    both: NonNegativeFloat = 3.0
    """Of KL(P || P(q^, k^))."""
    keys: NonNegativeFloat = 1.0
    """Of KL(P || P(q, k^))."""
    queries: NonNegativeFloat = 1.0
    """Of KL(P || P(q^, k))."""
    penalty: NonNegativeFloat = 0.0
    """Lambda; zero where a number of features is given (TopK, BatchTopK)."""
    counted: Literal["roots", "active"] = "roots"
    """What lambda weighs: the roots R, or the number of active features (JumpReLU only)."""
    exponent: PositiveFloat = 1.0
    """Power of each query's KL whose mean is taken."""


class QKLoss(NamedTuple):
    """The terms of one batch, unweighted; KLs are in nats to the power that the settings say."""

    both: Float[Tensor, ""]
    """KL with queries and keys from features, nats."""
    keys: Float[Tensor, ""]
    """KL with keys alone from features, nats."""
    queries: Float[Tensor, ""]
    """KL with queries alone from features, nats."""
    penalty: Float[Tensor, ""]
    """R(c_Q) + R(c_K), or active features, per token."""
    l0_Q: Float[Tensor, ""]
    """Active query features per token; no gradient."""
    l0_K: Float[Tensor, ""]
    """Active key features per token; no gradient."""

    def total(self, settings: QKLossSettings) -> Float[Tensor, ""]:
        """What is minimised."""
        kl = settings.both * self.both + settings.keys * self.keys + settings.queries * self.queries
        return kl + settings.penalty * self.penalty


def qk_loss(
    transcoder: QKTranscoder,
    block: QKBlock,
    x: Float[Tensor, "batch pos d_in"],
    settings: QKLossSettings,
) -> tuple[QKLoss, QKPass]:
    """The terms on whole rows of what attention reads, and the pass they came from."""
    found = transcoder.run(x)
    with torch.no_grad():
        q, k = block.queries(x), block.keys(x)
        true = true_pattern(scores(q, k, block.scoring))
    both, keys, queries = (
        _powered(pattern_kl(true, scores(queries, keys, block.scoring))[..., 1:], settings.exponent)
        for queries, keys in ((found.q, found.k), (q, found.k), (found.q, k))
    )
    penalty = x.new_zeros(())
    if settings.penalty:
        penalty = _penalty(transcoder, "Q", found.query_side, settings.counted) + _penalty(
            transcoder, "K", found.key_side, settings.counted
        )
    tokens = max(1, x.shape[0] * (x.shape[1] - 1))
    l0_Q, l0_K = (active(side).sum() / tokens for side in (found.query_side, found.key_side))
    return QKLoss(both, keys, queries, penalty, l0_Q, l0_K), found


def _powered(kl: Tensor, exponent: float) -> Tensor:
    return kl.mean() if exponent == 1 else (kl.clamp_min(0) + _LEAST_KL).pow(exponent).mean()


def active(side: SidePass) -> Tensor:
    """Whether each feature of a pass, or each entry of its code, is not zero."""
    values = side.latents if side.code is None else side.code.value
    assert values is not None
    return values.detach() != 0


def _penalty(transcoder: QKTranscoder, which: Which, side: SidePass, counted: str) -> Tensor:
    if counted == "active":
        activation = getattr(transcoder, f"activation_{which}")
        if not isinstance(activation, JumpReLUActivation):
            raise UserError(
                "Active features can be weighed with JumpReLU alone, which gives their number a "
                'gradient: set counted to "roots"'
            )
        assert side.pre is not None
        return activation.count(side.pre).sum(1).mean()
    lengths = transcoder.lengths(which)
    if side.code is not None:
        weighed = side.code.value * lengths[side.code.support.latent]
        return (weighed + _INSIDE_ROOT).sqrt().sum() / side.code.support.rows
    assert side.latents is not None
    return (side.latents * lengths + _INSIDE_ROOT).sqrt().sum(1).mean()
