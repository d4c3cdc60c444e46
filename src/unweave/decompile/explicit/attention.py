"""Where a layer looks, from features alone.

Queries and keys are sums of features. Where a part makes them, its latents are those features;
where none does, everything that writes to the stream is one (what it adds to queries per unit of
strength over the norm's scale), and what the projection adds by itself one more. So a network whose
patterns are the subject's own runs in features too, at the cost of many more pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.decompile.explicit.active import On
from unweave.decompile.explicit.pairs import Pairs, as_planes
from unweave.decompile.explicit.writers import Writers, outputs, written
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.subject import Subject
from unweave.subject.attending import Attending, attending


@dataclass(frozen=True)
class HeadNorm:
    """The norm of a head's queries or keys (Qwen 3, Gemma 3), from features."""

    gram: Float[Tensor, "heads features features"]
    """Products of what features write to a head, over d_head."""
    eps: float
    """What is added to the mean square."""

    def scale(self, on: On) -> Float[Tensor, "batch heads pos"]:
        """What heads are divided by."""
        return (on.square(self.gram).clamp_min(0) + self.eps).sqrt().transpose(0, 1).float()


@dataclass(frozen=True)
class Attention:
    """One layer's way from features that are on to its pattern."""

    rule: Attending
    """Window, cap, and the norms of heads."""
    pairs: Pairs
    """What pairs of features add."""
    query_norm: HeadNorm | None
    """Norm of queries, where there is one."""
    key_norm: HeadNorm | None
    """Norm of keys, where there is one."""

    def pattern(self, query: On, key: On) -> Float[Tensor, "batch heads query key"]:
        """Where the queries of the last positions look; keys are those of all positions."""
        scores = self.pairs.scores(query, key)
        if self.query_norm is not None:
            scores = scores / self.query_norm.scale(query)[..., None]
        if self.key_norm is not None:
            scale = self.key_norm.scale(key)[:, :, None]
            scores = scores / scale.repeat_interleave(scores.shape[1] // scale.shape[1], 1)
        if self.rule.cap is not None:
            scores = (scores / self.rule.cap).tanh() * self.rule.cap
        first = key.feature.shape[1] - query.feature.shape[1]
        return self.rule.mask(scores, first).softmax(-1)


def attention_in_features(
    subject: Subject, parts: Mapping[str, Part], writers: Writers, layer: int
) -> Attention:
    """What a layer's query features and key features are, whoever makes them."""
    rule = attending(subject, layer)
    planes = 0 if rule.theta is None else len(rule.theta)
    sides, norms = [], []
    for kind, gain in (("q", rule.q_gain), ("k", rule.k_gain)):
        heads = _features(subject, parts, writers, f"L{layer}.{kind}")
        norms.append(None if gain is None else _head_norm(heads, rule.head_eps))
        sides.append(as_planes(heads if gain is None else heads * gain, planes, rule.stretch))
    theta = torch.zeros(sides[0].shape[-1])
    if rule.theta is not None:
        theta[:planes] = rule.theta
    return Attention(rule, Pairs(sides[0], sides[1], theta, rule.scale), *norms)


def _head_norm(heads: Float[Tensor, "features heads d_head"], eps: float) -> HeadNorm:
    return HeadNorm(torch.einsum("ahd,bhd->hab", heads, heads) / heads.shape[-1], eps)


def _features(
    subject: Subject, parts: Mapping[str, Part], writers: Writers, name: str
) -> Float[Tensor, "features heads d_head"]:
    """What features add to queries or keys."""
    place = place_of(name)
    heads = subject.n_heads if place.kind == "q" else subject.n_kv_heads
    if name in parts:
        return outputs(parts[name]).unflatten(1, (heads, -1))
    weights = subject.attention_weights(place.layer)
    W, bias = (weights.W_Q, weights.b_Q) if place.kind == "q" else (weights.W_K, weights.b_K)
    own = slice(None, None, subject.n_heads // heads)  # keys of groups are repeated there
    read = written(subject, parts, writers)[: writers.before(f"L{place.layer}.attn")]
    read = read * subject.norm_gain(place.layer, "attn").float()
    shift = subject.norm_bias(place.layer, "attn")
    read = torch.cat([read, (torch.zeros_like(read[:1]) if shift is None else shift[None])])
    added = torch.einsum("wm,hmd->whd", read, W[own].float())
    if bias is not None:
        added[-1] += bias[own]
    return added
