"""A network run with every component reading an input of its own.

In the network, all components of a block read one stream. Here each target of the graph (the
queries of each head, its keys, its values, each MLP, the logits) is given what a rule says, passed
through the norm that stands before it: what path patching and gradients by edge need.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.circuits.components import Graph, Readers
from unweave.errors import UserError
from unweave.subject import Replacement, Subject

NOTHING: Mapping[str, Replacement] = MappingProxyType({})


@runtime_checkable
class Rule(Protocol):
    """What targets read, and what is done with what sources write."""

    listens: bool
    """Whether it wants to be told what sources write."""

    def reads(
        self, readers: Readers, stream: Float[Tensor, "batch pos d"]
    ) -> Float[Tensor, "batch pos targets d"]:
        """The input of each of the readers, where `stream` flows in this pass."""
        ...

    def wrote(self, sources: slice, outputs: Float[Tensor, "batch pos sources d"]) -> None:
        """Take notice of what some sources put on the stream in this pass."""
        ...


class Listening:
    """Everything reads the stream, and what sources write is kept."""

    listens = True

    def __init__(self, graph: Graph) -> None:
        self._sources = len(graph.sources)
        self.outputs = torch.empty(0)
        """[batch, pos, sources, d] once the pass is over."""

    def reads(self, readers: Readers, stream: Tensor) -> Tensor:
        """See `Rule.reads`."""
        return stream[:, :, None].expand(-1, -1, readers.targets.stop - readers.targets.start, -1)

    def wrote(self, sources: slice, outputs: Tensor) -> None:
        """See `Rule.wrote`."""
        if not self.outputs.numel():
            batch, pos, _, d = outputs.shape
            self.outputs = outputs.new_empty(batch, pos, self._sources, d)
        self.outputs[:, :, sources] = outputs


class Wired:
    """A subject whose components can be given inputs of their own.

    Families that norm what a block writes (Gemma 2 and 3) are served too: a head writes its share
    of the normed sum, with the scale that the norm has in the pass at hand.
    """

    def __init__(self, subject: Subject) -> None:
        if subject.dtype != torch.float32:
            raise UserError(
                f"{subject.name} is in {subject.dtype}, too coarse for differences between its"
                " components: load it with dtype='float32'"
            )
        self.subject, self.graph = subject, Graph.of(subject)
        layers, group = range(subject.n_layers), self.graph.group
        self._weights = [subject.attention_weights(layer) for layer in layers]
        self._projections = [
            tuple(
                (w[::step], None if b is None else b[::step])
                for w, b, step in ((a.W_Q, a.b_Q, 1), (a.W_K, a.b_K, group), (a.W_V, a.b_V, group))
            )
            for a in self._weights
        ]
        self._gains = [
            {part: subject.write_gain(layer, part) for part in ("attn", "mlp")} for layer in layers
        ]
        self._norms_writes = any((g != 1).any() for gains in self._gains for g in gains.values())

    def run(
        self,
        tokens: Int[Tensor, "batch pos"],
        rule: Rule,
        *,
        replace: Mapping[str, Replacement] = NOTHING,
    ) -> Float[Tensor, "batch pos vocab"]:
        """Logits of one pass under a rule; `replace` changes other sites as `Subject.run` does."""
        visit = _Pass(self, rule)
        logits = self.subject.run(
            tokens, replace={**visit.replaced(), **replace}, show=visit.shown()
        ).logits
        assert logits is not None
        return logits

    @torch.no_grad()
    def outputs(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos sources d"]:
        """What every source writes when nothing is changed."""
        rule = Listening(self.graph)
        self.run(tokens, rule)
        return rule.outputs

    def _normed(self, site: str, x: Tensor) -> Tensor:
        """Through the norm whose output is the site, past whatever is hooked to it."""
        module = self.subject.model.get_submodule(self.subject.place(site).module)
        return cast(Tensor, module.forward(x))

    def _projected(self, layer: int, x: Tensor) -> list[Tensor]:
        """Queries, keys and values from [batch, pos, attention targets, d]."""
        y = self._normed(f"blocks.{layer}.attn.in", x)
        found, first = [], 0
        for weight, bias in self._projections[layer]:
            own = y[:, :, first : first + len(weight)]
            made = torch.einsum("bphd,hde->bphe", own, weight)
            found.append(made if bias is None else made + bias)
            first += len(weight)
        return found

    def _head_outputs(self, layer: int, z: Tensor) -> Tensor:
        z = z.unflatten(-1, (self.graph.n_heads, -1))
        return torch.einsum("bphe,hed->bphd", z, self._weights[layer].W_O)


class _Pass:
    """What happens at the sites of one pass."""

    def __init__(self, wired: Wired, rule: Rule) -> None:
        self.wired, self.rule, self.graph = wired, rule, wired.graph
        self._stream: dict[str, Tensor] = {}
        self._made: list[Tensor] = []
        self._written = torch.empty(0)

    def replaced(self) -> dict[str, Replacement]:
        """Sites that are given what the rule says."""
        sites: dict[str, Replacement] = {"final": self._logits}
        for layer in range(self.graph.n_layers):
            for place, part in enumerate("qkv"):
                sites[f"blocks.{layer}.attn.{part}"] = partial(self._attention, layer, place)
            sites[f"blocks.{layer}.mlp.in"] = partial(self._mlp, layer)
        return sites

    def shown(self) -> dict[str, Callable[[Tensor], object]]:
        """Sites that are looked at on the way."""
        sites: dict[str, Callable[[Tensor], object]] = {}
        for layer in range(self.graph.n_layers):
            block = f"blocks.{layer}"
            sites[f"{block}.resid_pre"] = partial(self._before, layer)
            if not self.graph.parallel:
                sites[f"{block}.resid_mid"] = partial(self._between, layer)
            sites[f"{block}.resid_post"] = partial(self._after, layer)
            if self.rule.listens:
                sites[f"{block}.attn.z"] = partial(self._heads, layer)
                if not self.wired._norms_writes:
                    sites[f"{block}.mlp.out"] = partial(self._mlp_wrote, layer)
        return sites

    def _before(self, layer: int, stream: Tensor) -> None:
        if layer == 0 and self.rule.listens:
            self.rule.wrote(slice(0, 1), stream[:, :, None])
        self._stream["attn"] = stream

    def _between(self, layer: int, stream: Tensor) -> None:
        self._stream["mlp"] = stream
        if self.rule.listens and self.wired._norms_writes:
            added = stream - self._stream["attn"]
            raw = self._written * self.wired._gains[layer]["attn"]
            whole = raw.sum(2)
            scale = (added * whole).sum(-1) / whole.square().sum(-1).clamp_min(1e-30)
            self.rule.wrote(self.graph.heads(layer), raw * scale[:, :, None, None])

    def _after(self, layer: int, stream: Tensor) -> None:
        if self.rule.listens and self.wired._norms_writes:
            self.rule.wrote(self.graph.mlp(layer), (stream - self._stream["mlp"])[:, :, None])
        self._stream["logits"] = stream

    def _heads(self, layer: int, z: Tensor) -> None:
        self._written = self.wired._head_outputs(layer, z)
        if not self.wired._norms_writes:
            self.rule.wrote(self.graph.heads(layer), self._written)

    def _mlp_wrote(self, layer: int, out: Tensor) -> None:
        self.rule.wrote(self.graph.mlp(layer), out[:, :, None])

    def _attention(self, layer: int, place: int, _: Tensor) -> Tensor:
        if place == 0:
            readers = self.graph.readers(layer, "attn")
            self._made = self.wired._projected(
                layer, self.rule.reads(readers, self._stream["attn"])
            )
        return self._made[place]

    def _mlp(self, layer: int, _: Tensor) -> Tensor:
        stream = self._stream["attn" if self.graph.parallel else "mlp"]
        x = self.rule.reads(self.graph.readers(layer, "mlp"), stream)[:, :, 0]
        return self.wired._normed(f"blocks.{layer}.mlp.in", x)

    def _logits(self, _: Tensor) -> Tensor:
        readers = self.graph.readers(self.graph.n_layers, "logits")
        x = self.rule.reads(readers, self._stream["logits"])[:, :, 0]
        return self.wired._normed("final", x)
