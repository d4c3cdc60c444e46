"""L0 itself, with the straight-through gradients of JumpReLU (Rajamanoharan et al. 2024), and the
pre-activation penalty that keeps its latents alive (Anthropic, January 2025).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveFloat
from torch import Tensor

from unweave.dictionaries.activation.jumprelu import JumpReLUActivation
from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.shares import shares
from unweave.errors import UserError
from unweave.training.penalties.strengths import Strengths


class L0(Chosen):
    """Mean number of latents above their thresholds; with a target, (L0 / target - 1)^2.

    The step is applied to pre-activations, not to latents after the jump, where it would have no
    gradient left.
    """

    kind: Literal["l0"] = "l0"
    target: PositiveFloat | None = None
    """L0 to be reached instead of the smallest possible."""

    def of_jump(self, at: Strengths, activation: object) -> Float[Tensor, ""]:
        """Mean over rows.

        Raises:
            UserError: an activation without thresholds of its own.
        """
        jump, pre = _thresholds(activation, "l0"), _pre(at)
        counted = jump.count(pre) if at.latent is None else jump.count_at(pre, at.latent)
        mean = counted.sum() / at.rows
        if self.target is None:
            return mean
        everywhere = shares().mean(shares().total(mean.detach()))
        # Its gradient is this process's part of the whole one; its value, all shards' together.
        bill = ((mean + (everywhere - mean.detach())) / self.target - 1).square()
        return bill - bill.detach() * (1 - 1 / shares().total(torch.ones_like(bill)))


class PreActivation(Chosen):
    """Sum of relu(theta - pre) ||d||: what is silent is pulled towards its threshold."""

    kind: Literal["pre_activation"] = "pre_activation"

    def of_jump(self, at: Strengths, activation: object) -> Float[Tensor, ""]:
        """Mean over rows.

        Raises:
            UserError: an activation without thresholds of its own.
        """
        threshold = _thresholds(activation, "pre_activation").threshold
        assert at.latent is None, "what is silent must be there"
        return (torch.relu(threshold - _pre(at)) * at.lengths).sum() / at.rows


def _thresholds(activation: object, penalty: str) -> JumpReLUActivation:
    if not isinstance(activation, JumpReLUActivation):
        raise UserError(f"The {penalty} penalty needs a jumprelu activation, which has thresholds")
    return activation


def _pre(at: Strengths) -> Tensor:
    assert at.pre is not None
    return at.pre
