"""Switch encoder (Mudide et al. 2024, 2410.08201): a router sends each token to one expert.

    p = softmax(W_router (x - b_router)),  e* = argmax p,  pre = p_e* (W_enc x + b_enc) in block e*

Latents lie expert by expert; those of other experts are not computed. A balancing loss keeps the
experts in use: n_experts sum_e (share of tokens sent to e) (mean p_e), one when balanced.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from unweave.dictionaries.activation.settings import Chosen
from unweave.dictionaries.code import Support
from unweave.dictionaries.encoder.linear import linear_scorer
from unweave.dictionaries.kernels.grouped import Group, GroupedScorer
from unweave.dictionaries.kernels.ragged import pick
from unweave.dictionaries.kernels.select import Scorer
from unweave.dictionaries.shares import shares


class Switch(Chosen):
    """One expert's latents per token."""

    kind: Literal["switch"] = "switch"
    experts: int = Field(default=8, ge=2)
    """Number of experts; they share the latents evenly."""

    def build(self, d_in: int, n_latents: int) -> "SwitchEncoder":
        """The module, all zeros."""
        return SwitchEncoder(d_in, n_latents, self.experts)


class SwitchEncoder(nn.Module):
    """See `Switch`."""

    def __init__(self, d_in: int, n_latents: int, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_router = nn.Parameter(torch.zeros(experts, d_in))
        self.b_router = nn.Parameter(torch.zeros(d_in))

    def route(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows experts"]:
        """Probability of each expert."""
        return ((x - self.b_router) @ self.W_router.T).softmax(dim=1)

    def balance(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
        """The balancing loss; 1 is balanced, `experts` is all tokens to one."""
        p = self.route(x)
        sent = shares().mean(torch.bincount(p.argmax(1), minlength=self.experts) / len(x))
        return self.experts * (sent * p.mean(0)).sum()

    def scorer(self, dtype: torch.dtype) -> Scorer:
        """Pre-activations of the chosen expert; minus infinity elsewhere.

        The rows of an expert are multiplied together, and with its latents alone.
        """
        size = len(self.W_enc) // self.experts
        blocks = [
            linear_scorer(W, b, dtype)
            for W, b in zip(self.W_enc.split(size), self.b_enc.split(size), strict=True)
        ]

        latents = torch.arange(len(self.W_enc), device=self.W_enc.device).split(size)
        groups = [Group(*pair) for pair in zip(blocks, latents, strict=True)]
        return GroupedScorer(lambda tile: self.route(tile).argmax(1), groups, len(self.W_enc))

    def at(
        self,
        x: Float[Tensor, "rows d_in"],
        support: Support,
        score: Float[Tensor, " active"],
        low: Float[Tensor, "rows d_in"] | None = None,
    ) -> Float[Tensor, " active"]:
        """Pre-activations weighted by their expert's probability, differentiable in both."""
        own = score > -torch.inf
        known = torch.where(own, score, 0.0)
        expert = support.latent // (len(self.W_enc) // self.experts)
        weight = self.route(x)[support.row, expert]
        return pick(known, x, self.W_enc, self.b_enc, support, low) * weight * own
