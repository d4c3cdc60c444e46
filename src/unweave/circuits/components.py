"""The graph of a network's components: who writes to the residual stream, and who reads from it.

Sources are what is put on the stream (`embed`), every attention head and every MLP. Targets are
the inputs of each head's queries, keys and values, of each MLP and of the logits. An edge leads
from a source to every target that is computed after it; a target reads the sum of its sources.

With grouped queries the heads of a group share one key and one value, so those are one target for
the group, `blocks.0.kv.1.k`. MIB (Mueller et al. 2025, 2504.13151) counts them once a query head:
`weight` says how many of its edges one of ours stands for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.subject import Subject

EMBED, LOGITS = "embed", "logits"
"""The first source and the last target."""

Scores = Float[Tensor, "sources targets"]
"""What each edge is worth; zero where there is no edge."""
Circuit = Bool[Tensor, "sources targets"]
"""The edges that are kept; false where there is no edge."""


class Readers(NamedTuple):
    """Targets that read the stream at the same point."""

    layer: int
    """Block; the number of blocks for the logits."""
    part: str
    """`attn`, `mlp` or `logits`."""
    targets: slice
    """Which targets: of attention all queries, then all keys, then all values."""
    reach: int
    """How many sources write before that: always the first so many."""


@dataclass(frozen=True)
class Graph:
    """Sources, targets and edges of a network of these sizes."""

    n_layers: int
    """Blocks."""
    n_heads: int
    """Query heads of a block."""
    n_kv_heads: int
    """Key and value heads of a block."""
    parallel: bool = False
    """Whether attention and MLP of a block read the same stream."""

    @classmethod
    def of(cls, subject: Subject) -> "Graph":
        """The graph of a subject; a `UserError` where no table row knows its architecture."""
        size = subject.geometry
        return cls(size.n_layers, size.n_heads, size.n_kv_heads, size.parallel)

    @property
    def group(self) -> int:
        """Query heads that share a key and a value."""
        return self.n_heads // self.n_kv_heads

    @cached_property
    def sources(self) -> list[str]:
        """Names of the sources in the order of computation."""
        names = [EMBED]
        for layer in range(self.n_layers):
            names += [f"blocks.{layer}.head.{head}" for head in range(self.n_heads)]
            names.append(f"blocks.{layer}.mlp")
        return names

    @cached_property
    def targets(self) -> list[str]:
        """Names of the targets, readers by readers."""
        shared = "head" if self.group == 1 else "kv"
        names = []
        for layer in range(self.n_layers):
            names += [f"blocks.{layer}.head.{head}.q" for head in range(self.n_heads)]
            names += [
                f"blocks.{layer}.{shared}.{head}.{part}"
                for part in "kv"
                for head in range(self.n_kv_heads)
            ]
            names.append(f"blocks.{layer}.mlp")
        return [*names, LOGITS]

    @property
    def attention_targets(self) -> int:
        """Targets of one block's attention."""
        return self.n_heads + 2 * self.n_kv_heads

    def heads(self, layer: int) -> slice:
        """The sources that are a block's heads."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def mlp(self, layer: int) -> slice:
        """The source that is a block's MLP, as a slice of one."""
        first = self.heads(layer).stop
        return slice(first, first + 1)

    def readers(self, layer: int, part: str) -> Readers:
        """The targets of a block's attention or MLP, or the logits."""
        if part == LOGITS:
            last = len(self.targets) - 1
            return Readers(self.n_layers, part, slice(last, last + 1), len(self.sources))
        first, before = layer * (self.attention_targets + 1), self.heads(layer)
        if part == "attn":
            return Readers(layer, part, slice(first, first + self.attention_targets), before.start)
        first += self.attention_targets
        reach = before.start if self.parallel else before.stop
        return Readers(layer, part, slice(first, first + 1), reach)

    def all_readers(self) -> Iterator[Readers]:
        """All targets, in the order of computation."""
        for layer in range(self.n_layers):
            yield self.readers(layer, "attn")
            yield self.readers(layer, "mlp")
        yield self.readers(self.n_layers, LOGITS)

    @cached_property
    def mask(self) -> Circuit:
        """Where there is an edge: the whole network as a circuit."""
        found = torch.zeros(len(self.sources), len(self.targets), dtype=torch.bool)
        for readers in self.all_readers():
            found[: readers.reach, readers.targets] = True
        return found

    @cached_property
    def weight(self) -> Int[Tensor, " targets"]:
        """MIB's edges for each edge into a target."""
        shared = (".k", ".v")
        return torch.tensor([self.group if t.endswith(shared) else 1 for t in self.targets])

    @property
    def n_edges(self) -> int:
        """Edges."""
        return int(self.mask.sum())

    @property
    def n_weighted(self) -> int:
        """Edges as MIB counts them, keys and values once for every query head."""
        return self.weighted(self.mask)

    def weighted(self, circuit: Circuit) -> int:
        """Edges of a circuit as MIB counts them."""
        return int((circuit.sum(0) * self.weight).sum())

    @cached_property
    def depends(self) -> Bool[Tensor, "sources targets"]:
        """Whether what a source writes depends on a target directly: a head on its q, k and v."""
        found = torch.zeros(len(self.sources), len(self.targets), dtype=torch.bool)
        for layer in range(self.n_layers):
            first, heads = self.readers(layer, "attn").targets.start, self.heads(layer)
            for head, source in enumerate(range(heads.start, heads.stop)):
                key = first + self.n_heads + head // self.group
                found[source, [first + head, key, key + self.n_kv_heads]] = True
            found[self.mlp(layer), self.readers(layer, "mlp").targets] = True
        return found

    def named(self, scores: Scores) -> dict[tuple[str, str], float]:
        """Scores by the names of source and target, in the order of computation."""
        return {
            (self.sources[s], self.targets[t]): scores[s, t].item()
            for s, t in self.mask.nonzero().tolist()
        }
