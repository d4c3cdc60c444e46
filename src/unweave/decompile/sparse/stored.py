"""A pruned network as it is kept: its edges alone, by the writer that they come from.

    first[w], first[w + 1]    where the edges of writer w begin and end, for each reader's table
    target                    which reader of the table each goes to
    weight                    what the writer's strength is multiplied by

Nothing else of the tables exists: what is on sends along its edges and readers sum what arrives.
The norms' scales come from products of writers, `a M a` over what is on.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.artifact.atomic import new_folder, write_json
from unweave.artifact.spec_folder import spec_in
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.sparse.edges import EdgeNetwork
from unweave.decompile.sparse.machine import Strengths, Trace, trace
from unweave.decompile.sparse.spec import EdgeSpec
from unweave.errors import UserError


class Outgoing(NamedTuple):
    """Edges into one table of readers, by writer."""

    first: Int[Tensor, " writers_and_end"]
    """Where each writer's edges begin; the last is where the last writer's end."""
    target: Int[Tensor, " edges"]
    """Readers."""
    weight: Float[Tensor, " edges"]
    """Edges."""


class Arriving(NamedTuple):
    """What arrives at readers of one table, an entry for each edge whose writer is on."""

    row: Int[Tensor, " arriving"]
    """At which position."""
    writer: Int[Tensor, " arriving"]
    """From whom."""
    target: Int[Tensor, " arriving"]
    """At which reader."""
    amount: Float[Tensor, " arriving"]
    """Strength times edge."""


class SparseEdgeNetwork:
    """A network whose forward pass is sums over the edges that are left.

    ```python
    network = SparseEdgeNetwork.of(pruned)
    network.save(folder)
    logits = SparseEdgeNetwork.load(folder)(tokens)  # [batch, pos, vocab]
    ```
    """

    def __init__(self, spec: EdgeSpec, tensors: Mapping[str, Tensor]) -> None:
        self.spec, self._tensors = spec, dict(tensors)
        named = spec.readers
        try:
            self.out = {n: Outgoing(*(tensors[f"{what}/{n}"] for what in _OUT)) for n in named}
            self.offsets: Mapping[str, Tensor] = {name: tensors[f"offset/{name}"] for name in named}
            self.queries: Mapping[str, Tensor] = {
                n: tensors[f"query/{n}"] for n in named if n.endswith(".q")
            }
            self.keys: Mapping[str, Tensor] = {
                n: tensors[f"key/{n}"] for n in named if n.endswith(".k")
            }
            self.theta, self._root = tensors["theta"], tensors["gram_root"]
        except KeyError as error:
            raise UserError(
                f"the stored edges of {spec.subject} lack the tensor {error}: save them again"
            ) from error
        self._check()
        self._gram: Tensor | None = None

    @classmethod
    def of(cls, network: EdgeNetwork) -> "SparseEdgeNetwork":
        """The edges that a pruned network has left; edges of zero are none."""
        tensors = {"theta": network.theta, "gram_root": network.gram_root}
        for name, table in network.tables.items():
            writer, target = table.detach().nonzero().unbind(1)
            counts = torch.bincount(writer, minlength=len(table))
            first = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            weight = table.detach()[writer, target]
            found = (first.int(), target.to(torch.int32), weight)
            tensors |= {f"{what}/{name}": t for what, t in zip(_OUT, found, strict=True)}
        for what, name, tensor in network.others():
            tensors[f"{what}/{name}"] = tensor.detach().clone()
        return cls(network.spec, tensors)

    def tables(self) -> EdgeNetwork:
        """The same network as tables with masks, to be trained or pruned further."""
        tables = {}
        for name, out in self.out.items():
            table = torch.zeros(self.spec.seen(name), len(self.offsets[name]))
            writer = torch.arange(len(table)).repeat_interleave(out.first.diff().long())
            table[writer, out.target.long()] = out.weight
            tables[name] = table
        offsets, queries, keys = (
            {n: t.clone() for n, t in group.items()}
            for group in (self.offsets, self.queries, self.keys)
        )
        network = EdgeNetwork(self.spec, tables, offsets, queries, keys, self.theta, self._root)
        if self.edges < self.entries:
            network.keep({name: table != 0 for name, table in tables.items()})
        return network

    def save(self, folder: Path) -> None:
        """Write `edges.safetensors` and `spec.json`."""
        with new_folder(folder) as partial:
            save_tensors(partial / "edges.safetensors", self._tensors)
            write_json(partial / "spec.json", self.spec.model_dump(mode="json"))

    @classmethod
    def load(cls, folder: Path) -> "SparseEdgeNetwork":
        """Read what `save` wrote; a UserError names what is missing or does not fit."""
        spec = spec_in(folder, EdgeSpec, "a network of edges")
        return cls(spec, load_tensors(folder / "edges.safetensors"))

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits, from what is sent along edges."""
        logits = trace(self, tokens).logits
        assert logits is not None
        return logits

    @torch.no_grad()
    def trace(self, tokens: Int[Tensor, "batch pos"]) -> Trace:
        """Everything that happened on the way to the logits."""
        return trace(self, tokens)

    @property
    def gram(self) -> Float[Tensor, "writers writers"]:
        """Products of what writers write, over the stream's width; made when first needed."""
        if self._gram is None:
            self._gram = self._root @ self._root.T
        return self._gram

    def arriving(self, strengths: Strengths, reader: str) -> Arriving:
        """Everything that is sent to the readers of one table."""
        row, writer, strength = self._on(strengths, reader)
        out = self.out[reader]
        first, end = out.first[writer].long(), out.first[writer + 1].long()
        count = end - first
        each = torch.arange(len(writer)).repeat_interleave(count)
        begun = count.cumsum(0) - count
        edge = first[each] + torch.arange(len(each)) - begun[each]
        amount = strength[each] * out.weight[edge]
        return Arriving(row[each], writer[each], out.target[edge].long(), amount)

    def read(self, strengths: Strengths, reader: str) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times edge."""
        sent = self.arriving(strengths, reader)
        rows, readers = len(strengths.token), len(self.offsets[reader])
        total = torch.zeros(rows * readers)
        total.index_add_(0, sent.row * readers + sent.target, sent.amount)
        return total.view(rows, readers)

    def scale(self, strengths: Strengths, norm: str) -> Float[Tensor, " rows"]:
        """What a norm divides by: a M a over what is on."""
        token, vocab = strengths.token, self.spec.vocab
        square = self.gram.diagonal()[token]
        if strengths.on.shape[1]:
            on = strengths.on
            mine = slice(vocab, vocab + on.shape[1])
            sent = on @ self.gram[mine, mine] + 2 * self.gram[token, mine]
            square = square + (sent * on).sum(1)
        return (square.clamp_min(0) + self.spec.eps).sqrt()

    @property
    def edges(self) -> int:
        """How many edges there are."""
        return sum(len(out.weight) for out in self.out.values())

    @property
    def entries(self) -> int:
        """How many edges there could be."""
        return sum(self.spec.seen(n) * len(self.offsets[n]) for n in self.out)

    @property
    def bits(self) -> float:
        """Bits that say which edges there are, log2 of (entries choose edges), and their weights.

        Weights count with the bits of their number format.
        """
        n, m = self.entries, self.edges
        which = (math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)) / math.log(2)
        return which + sum(
            o.weight.numel() * o.weight.element_size() * 8 for o in self.out.values()
        )

    def _on(self, strengths: Strengths, reader: str) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, writers and strengths of all that is on and comes before a reader."""
        token = strengths.token
        row, writer, value = torch.arange(len(token)), token, torch.ones(len(token))
        on = strengths.on
        assert on.shape[1] + self.spec.vocab == self.spec.seen(reader)
        at, which = on.nonzero().unbind(1)
        return (
            torch.cat([row, at]),
            torch.cat([writer, which + self.spec.vocab]),
            torch.cat([value, on[at, which]]),
        )

    def _check(self) -> None:
        for name, out in self.out.items():
            writers, readers = self.spec.seen(name), len(self.offsets[name])
            first, target = out.first, out.target
            fits = len(first) == writers + 1 and int(first[-1]) == len(target) == len(out.weight)
            fits = fits and int(first[0]) == 0 and bool((first.diff() >= 0).all())
            if not fits or (
                len(target) and not 0 <= int(target.min()) <= int(target.max()) < readers
            ):
                raise UserError(
                    f"the stored edges into {name} do not fit their spec ({writers} writers, "
                    f"{readers} readers): the file is damaged or not the spec's; save it again"
                )


_OUT = ("first", "target", "weight")
