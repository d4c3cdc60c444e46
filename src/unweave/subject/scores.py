"""Attention scores and patterns computed from queries and keys, as a subject computes them.

The sites `attn.q` and `attn.k` lie before rotary positions. These functions do what the subject
does with them, so that a pattern can be had from queries and keys that come from elsewhere:

    score[h, t, s] = scale * <R_t q[t, h], R_s k[s, g(h)]>,   pattern = softmax over s <= t

with R_t the turn of position t and g(h) = h // (heads / kv heads) the key head that head h reads.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.families import find_family
from unweave.subject.network import Subject
from unweave.subject.rotary import frequencies, rotary, rotate


@dataclass(frozen=True)
class Scoring:
    """All that a layer needs to turn queries and keys into scores."""

    scale: float
    """What products are multiplied by, 1 / sqrt(d_head) in most families."""
    cos: Float[Tensor, "pos rotated"] | None
    """Cosines by position; None without rotary positions."""
    sin: Float[Tensor, "pos rotated"] | None
    """Sines by position."""
    theta: Float[Tensor, " planes"] | None
    """Radians from one position to the next, by plane."""

    def turn(self, x: Float[Tensor, "... pos heads d_head"]) -> Tensor:
        """Turned by position, heads first: [..., heads, pos, d_head]."""
        x = x.transpose(-3, -2)
        if self.cos is None or self.sin is None:
            return x
        n = x.shape[-2]
        return rotate(x, self.cos[:n].to(x.dtype), self.sin[:n].to(x.dtype))


def scoring(subject: Subject, layer: int, n_positions: int) -> Scoring:
    """How a layer of a subject scores, for rows of up to `n_positions`.

    Raises:
        UserError: the layer norms its heads, caps its scores, or sees only a window shorter than
            the rows, so that its scores are not products of its sites.
    """
    module = attention_module(subject, layer)
    _refuse_unknown(subject, module, n_positions)
    turns = rotary(subject, n_positions)
    cos, sin = turns or (None, None)
    # GPT-Neo has no such attribute, and does not scale.
    return Scoring(float(getattr(module, "scaling", 1.0)), cos, sin, frequencies(subject))


def scores(
    q: Float[Tensor, "... pos heads d_head"],
    k: Float[Tensor, "... pos kv_heads d_head"],
    scoring: Scoring,
) -> Float[Tensor, "... heads pos pos"]:
    """Scores before the mask, from queries and keys as the sites hold them.

    Entries of keys after their query are computed like any other: `pattern` masks them.
    """
    queries, keys = scoring.turn(q), scoring.turn(k)
    keys = keys.repeat_interleave(q.shape[-2] // k.shape[-2], -3)
    return queries @ keys.transpose(-2, -1) * scoring.scale


def pattern(scores: Float[Tensor, "... query key"]) -> Float[Tensor, "... query key"]:
    """Softmax over the keys that are not after their query."""
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


def attention_module(subject: Subject, layer: int) -> nn.Module:
    """The module of a block that calls the attention function."""
    module = subject.place(f"blocks.{layer}.attn.pattern").module
    family = find_family(getattr(subject.config, "model_type", None))
    assert family is not None  # the site would not exist
    if family.pattern:
        module = module.removesuffix(family.pattern) + family.attn
    return subject.model.get_submodule(module)


def _refuse_unknown(subject: Subject, module: nn.Module, n_positions: int) -> None:
    window = window_of(subject, module)
    unknown = {
        "norms its heads' queries and keys": hasattr(module, "q_norm"),
        "caps its scores": getattr(module, "attn_logit_softcapping", None) is not None,
        f"sees only {window} positions": window is not None and n_positions > window,
    }
    for what, true in unknown.items():
        if true:
            raise UserError(
                f"a layer of {subject.name} {what}, so its scores are not products of its "
                "attn.q and attn.k; take another subject, or shorter rows if it is the window"
            )


def window_of(subject: Subject, module: nn.Module) -> int | None:
    """How many positions, its own included, a layer sees; None where it sees all."""
    own = getattr(module, "sliding_window", None)
    if own is not None:
        return own
    kind = getattr(module, "attention_type", None)  # GPT-Neo: "global" or "local"
    if kind == "local":
        return getattr(subject.config, "window_size", None)
    if kind is None and not hasattr(module, "sliding_window"):
        return getattr(subject.config, "sliding_window", None)
    return None
