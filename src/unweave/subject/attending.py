"""How a block attends beyond products of its sites, so that it can be done elsewhere.

    q' = G_q q / rms(q),  k' = G_k k / rms(k)                      where heads are normed
    score[h, t, s] = cap tanh(scale <R_t q'[t, h], R_s k'[s, g(h)]> / cap)
    pattern = softmax over the s with 0 <= t - s < window

`scores` knows the plain case, which most subjects are.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.subject.families import find_family
from unweave.subject.network import Subject
from unweave.subject.scores import attention_module, window_of


@dataclass(frozen=True)
class Attending:
    """All that turns a block's queries and keys into its pattern."""

    scale: float
    """What products are multiplied by."""
    theta: Float[Tensor, " planes"] | None
    """Radians a plane is turned from one position to the next; None without rotary positions."""
    stretch: float
    """What turned vectors are lengthened by (YaRN and its like); 1 in most families."""
    window: int | None
    """Positions that a query sees, its own included; None for all before it."""
    cap: float | None
    """What scores are bent to stay below, where they are."""
    q_gain: Float[Tensor, " d_head"] | None
    """Gain of the norm of a head's queries, where there is one."""
    k_gain: Float[Tensor, " d_head"] | None
    """Gain of the norm of a head's keys, where there is one."""
    head_eps: float
    """What those norms add to the mean square."""

    def mask(
        self, queries: Float[Tensor, "... query key"], first: int
    ) -> Float[Tensor, "... query key"]:
        """Scores with minus infinity where a query may not look; the first is of position `first`.

        Keys begin at position 0.
        """
        query, key = queries.shape[-2:]
        device = queries.device
        apart = torch.arange(first, first + query, device=device)[:, None]
        apart = apart - torch.arange(key, device=device)
        shut = apart < 0
        if self.window is not None:
            shut = shut | (apart >= self.window)
        return queries.masked_fill(shut, -torch.inf)


def attending(subject: Subject, layer: int) -> Attending:
    """How a layer of a subject attends."""
    module = attention_module(subject, layer)
    theta, stretch = _turning(subject, module)
    cap = getattr(module, "attn_logit_softcapping", None)
    q_gain, k_gain = (_head_gain(subject, module, name) for name in ("q_norm", "k_norm"))
    return Attending(
        # GPT-Neo has no such attribute, and does not scale.
        scale=float(getattr(module, "scaling", 1.0)),
        theta=theta,
        stretch=stretch,
        window=window_of(subject, module),
        cap=None if cap is None else float(cap),
        q_gain=q_gain,
        k_gain=k_gain,
        head_eps=_eps(getattr(module, "q_norm", None)),
    )


def logit_cap(subject: Subject) -> float | None:
    """What logits are bent to stay below (Gemma 2); None in most families."""
    cap = getattr(subject.config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def _turning(subject: Subject, module: nn.Module) -> tuple[Tensor | None, float]:
    """Angles and stretch of a layer's rotary positions; Gemma 3 has one of each kind of layer."""
    kinds = ("", f"{getattr(module, 'layer_type', '')}_")
    for rotary in subject.model.modules():
        held = dict(rotary.named_buffers(recurse=False))
        for kind in kinds:
            if f"{kind}inv_freq" in held:
                stretch = float(getattr(rotary, f"{kind}attention_scaling", 1.0))
                return held[f"{kind}inv_freq"].detach().float(), stretch
    return None, 1.0


def _head_gain(subject: Subject, module: nn.Module, name: str) -> Tensor | None:
    norm = getattr(module, name, None)
    if norm is None:
        return None
    family = find_family(getattr(subject.config, "model_type", None))
    assert family is not None  # the module would not have been found
    return norm.get_parameter("weight").detach().float() + family.gain_offset


def _eps(norm: nn.Module | None) -> float:
    found = getattr(norm, "variance_epsilon", None)
    return float(getattr(norm, "eps", 0.0) if found is None else found)
