"""The forward pass of a network of edges, whatever form the edges are held in.

    pre_t = (1 / s) sum over writers w on of a_w V[w, t] + c_t

`Strengths` is all that exists of a token between blocks: which token it is, and how strongly each
latent is on. Edges are asked for sums, `read`, and for scales, `scale`; the rest is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import silu

from unweave.decompile.explicit.virtual import LOGITS
from unweave.decompile.sparse.spec import GATE, EdgeSpec, norm_before
from unweave.subject.scores import pattern


class Strengths(NamedTuple):
    """What is on at every position: the token, and latents with two constants by part."""

    token: Int[Tensor, " rows"]
    """Which token stands there."""
    on: Float[Tensor, "rows _"]
    """Strengths of all that has been written so far, part after part; zero where it is off."""

    def joined(self, more: Float[Tensor, "rows _"]) -> "Strengths":
        """With what one more part writes."""
        return Strengths(self.token, torch.cat([self.on, more], 1))


@runtime_checkable
class Edges(Protocol):
    """Edges in some form."""

    spec: EdgeSpec
    offsets: Mapping[str, Tensor]
    """What is added to the sum of each reader."""
    queries: Mapping[str, Tensor]
    """Planes that query features write, [features, heads, planes, 2], constants at the end."""
    keys: Mapping[str, Tensor]
    """Planes that key features write."""
    theta: Tensor
    """Radians a plane is turned from one position to the next."""

    def read(self, strengths: Strengths, reader: str) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times edge."""
        ...

    def scale(self, strengths: Strengths, norm: str) -> Float[Tensor, " rows"]:
        """What a norm divides by."""
        ...


@dataclass
class Trace:
    """What happened in a forward pass, by part; rows are tokens, batch after batch."""

    logits: Float[Tensor, "batch pos vocab"] | None = None
    """Logits."""
    pre: dict[str, Float[Tensor, "rows latents"]] = field(default_factory=dict)
    """Pre-activations, those of gates apart."""
    strength: dict[str, Float[Tensor, "rows latents"]] = field(default_factory=dict)
    """Strengths, zero where off."""
    scale: dict[str, Float[Tensor, " rows"]] = field(default_factory=dict)
    """Scales by norm."""
    pattern: dict[str, Float[Tensor, "batch heads query key"]] = field(default_factory=dict)
    """Patterns by the part that moves along them."""
    strengths: Strengths | None = None
    """All that was on at the end."""


def trace(edges: Edges, tokens: Int[Tensor, "batch pos"]) -> Trace:
    """Run the network and keep what happened; differentiable where the edges are."""
    spec, found = edges.spec, Trace()
    strengths = Strengths(tokens.reshape(-1), torch.zeros(tokens.numel(), 0))
    first = at_start(spec, tokens)
    for layer in range(spec.layers):
        before = strengths
        for kind in ("q", "k"):
            name = f"L{layer}.{kind}"
            _activate(edges, found, name, _pre(edges, found, before, name), first)
        strengths = _attend(edges, found, f"L{layer}.attn", before, first)
        name = f"L{layer}.mlp"
        reads = before if spec.parallel else strengths
        if name in spec.gated:
            _pre(edges, found, reads, f"{name}.{GATE}")
        on = _activate(edges, found, name, _pre(edges, found, reads, name), first)
        strengths = strengths.joined(on)
    logits = _pre(edges, found, strengths, LOGITS)
    found.logits, found.strengths = logits.unflatten(0, tokens.shape), strengths
    return found


def at_start(spec: EdgeSpec, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
    """Where a start token stands first in its row, if that is so in all rows."""
    first = torch.zeros(tokens.shape, dtype=torch.bool)
    if spec.start_token is not None:
        first[:, 0] = (tokens[:, 0] == spec.start_token).all()
    return first


def _read(edges: Edges, found: Trace, strengths: Strengths, name: str) -> Tensor:
    norm = norm_before(name)
    if norm not in found.scale:
        found.scale[norm] = edges.scale(strengths, norm)
    return edges.read(strengths, name) / found.scale[norm][:, None]


def _pre(edges: Edges, found: Trace, strengths: Strengths, name: str) -> Tensor:
    found.pre[name] = _read(edges, found, strengths, name) + edges.offsets[name]
    return found.pre[name]


def _activate(
    edges: Edges, found: Trace, name: str, pre: Tensor, first: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "rows on"]:
    """The k strongest, nothing where the row starts, and the part's two constants behind them."""
    flat = first.reshape(-1, 1)
    whole = pre.relu()
    if name in edges.spec.gated:
        whole = whole * silu(found.pre[f"{name}.{GATE}"])
    latent = whole.abs().topk(edges.spec.k[name], dim=1, sorted=False).indices
    value = whole.gather(1, latent).masked_fill(flat, 0.0)
    found.strength[name] = torch.zeros_like(pre).scatter(1, latent, value)
    return torch.cat([found.strength[name], (~flat).to(value), flat.to(value)], 1)


def _attend(
    edges: Edges, found: Trace, name: str, strengths: Strengths, first: Bool[Tensor, "batch pos"]
) -> Strengths:
    """Strengths with what the attention latents add: what they read at each source, moved."""
    layer = name.removesuffix(".attn")
    found.pattern[name] = pattern(_scores(edges, found, layer, first))
    read = _read(edges, found, strengths, name).unflatten(0, first.shape)
    by_head = read.unflatten(-1, (edges.spec.heads, -1))
    moved = torch.einsum("bhts,bshi->bthi", found.pattern[name], by_head)
    pre = moved.flatten(2).flatten(0, 1) + edges.offsets[name]
    found.pre[name] = pre
    on = _activate(edges, found, name, pre, first)
    return strengths.joined(on)


def _scores(
    edges: Edges, found: Trace, layer: str, first: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch heads query key"]:
    """Scores of turned queries and keys: scale * Re sum over planes of q conj(k)."""
    q = _turned(edges, found, f"{layer}.q", edges.queries[f"{layer}.q"], first)
    k = _turned(edges, found, f"{layer}.k", edges.keys[f"{layer}.k"], first)
    k = k.repeat_interleave(edges.spec.heads // edges.spec.kv_heads, 1)
    return q @ k.transpose(-2, -1) * edges.spec.score_scale


def _turned(
    edges: Edges, found: Trace, name: str, written: Tensor, first: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "batch heads pos coordinates"]:
    flat = first.reshape(-1, 1)
    on = torch.cat([found.strength[name], (~flat).float(), flat.float()], 1)
    planes = (on @ written.flatten(1)).view(*first.shape, *written.shape[1:])
    angle = torch.arange(first.shape[1])[:, None, None] * edges.theta
    cos, sin = angle.cos(), angle.sin()
    low, high = planes.unbind(-1)
    turned = torch.cat([low * cos - high * sin, low * sin + high * cos], -1)
    return turned.transpose(1, 2)
