"""Edges of the stream's rank: what writers write times what readers read, behind a mask.

    V[w, t] = kept[w, t] * write_w . read_t

A table of free edges has far more numbers than a short text can teach: steps along its gradient fit
the batch they came from and nothing else. So what is trained are the vectors behind the edges, as
in the decompiled network itself, with the mask between them; the products of the vectors are the
edges of the result, which can then be trained further as free numbers (`edges.EdgeNetwork`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.decompile.edges import virtual_weights
from unweave.decompile.explicit.virtual import LOGITS
from unweave.decompile.explicit.writers import number_writers, written
from unweave.decompile.sparse.edges import EdgeNetwork, edges_of
from unweave.decompile.sparse.machine import Strengths
from unweave.decompile.sparse.spec import GATE
from unweave.dictionaries.part import Part
from unweave.subject import Subject


class FactoredEdges(EdgeNetwork):
    """A network of edges that are products of two vectors each, but for those cut.

    `tables` are made of the vectors when they are needed: `settle` brings them up to date.
    """

    def __init__(
        self,
        edges: EdgeNetwork,
        writes: Mapping[str, Float[Tensor, "_ d_model"]],
        reads: Mapping[str, Float[Tensor, "_ d_model"]],
    ) -> None:
        super().__init__(
            edges.spec, edges.tables, edges.offsets, edges.queries, edges.keys, edges.theta,
            edges.gram_root,
        )  # fmt: skip
        self.writes, self.reads = dict(writes), dict(reads)
        """What each block of writers writes, and what each table's readers read."""

    def read(self, strengths: Strengths, reader: str) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times edge."""
        writes = self._written(self.spec.vocab + strengths.on.shape[1])
        return ReadFactors.apply(
            strengths.on, strengths.token, writes, self.reads[reader], self.kept.get(reader),
            self.dtype,
        )  # fmt: skip

    def scale(self, strengths: Strengths, norm: str) -> Float[Tensor, " rows"]:
        """What a norm divides by, by what writers write now."""
        width = self.spec.vocab + strengths.on.shape[1]
        writes, vocab = self._written(width), self.spec.vocab
        whole = strengths.on @ writes[vocab:] + writes[:vocab][strengths.token]
        return (whole.square().mean(1) + self.spec.eps).sqrt()

    def parameters(self) -> dict[str, Tensor]:
        """Vectors and all the rest, by name."""
        vectors = {f"write/{name}": t for name, t in self.writes.items()}
        vectors |= {f"read/{name}": t for name, t in self.reads.items()}
        return vectors | {f"{what}/{name}": tensor for what, name, tensor in self.others()}

    @torch.no_grad()
    def settle(self) -> EdgeNetwork:
        """Make tables and Gram matrix of the vectors as they are; returns this network."""
        for name, table in self.tables.items():
            torch.mm(self._written(len(table)), self.reads[name].T, out=table)
            if name in self.kept:
                table.mul_(self.kept[name])
        whole = self._written(sum(len(t) for t in self.writes.values()))
        self.gram_root = whole.detach() / whole.shape[1] ** 0.5
        return self

    def _written(self, count: int) -> Float[Tensor, "writers d_model"]:
        """What the first writers write."""
        blocks, found = [], 0
        for block in self.writes.values():
            if found == count:
                break
            blocks.append(block)
            found += len(block)
        return torch.cat(blocks)


class ReadFactors(torch.autograd.Function):
    """Strengths times masked products of vectors; the table exists in `dtype` alone."""

    @staticmethod
    def forward(
        ctx: Any,
        on: Float[Tensor, "rows latents"],
        token: Int[Tensor, " rows"],
        writes: Float[Tensor, "writers d_model"],
        reads: Float[Tensor, "readers d_model"],
        kept: Bool[Tensor, "writers readers"] | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "rows readers"]:
        """The sums, in float32."""
        a, w, r = on.to(dtype), writes.to(dtype), reads.to(dtype)
        table = w @ r.T
        if kept is not None:
            table *= kept
        ctx.vocab, ctx.kept = len(writes) - on.shape[1], kept
        ctx.save_for_backward(a, w, r, table, token)
        return (torch.mm(a, table[ctx.vocab :]) + table[: ctx.vocab][token]).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of strengths and of both vectors."""
        a, w, r, table, token = ctx.saved_tensors
        grad = grads[0].contiguous()
        g = grad.to(a.dtype)
        own = torch.empty_like(table)
        tokens = torch.zeros(ctx.vocab, grad.shape[1]).index_add_(0, token, grad)
        own[: ctx.vocab] = tokens
        own[ctx.vocab :] = torch.mm(a.T, g)
        if ctx.kept is not None:
            own *= ctx.kept
        on = torch.mm(g, table[ctx.vocab :].T).float() if ctx.needs_input_grad[0] else None
        return on, None, torch.mm(own, r).float(), torch.mm(own.T, w).float(), None, None


def factors_of(subject: Subject, parts: Mapping[str, Part]) -> FactoredEdges:
    """A decompiled network as products of what its writers write and its readers read.

    Raises:
        UserError: as `edges.edges_of`.
    """
    edges = edges_of(subject, parts)
    spec = edges.spec
    named = {name: parts[name] for name in spec.parts}
    whole = written(subject, named, number_writers(subject, named))
    writes = {name: whole[first:end].clone() for name, (first, end) in spec.writers.items()}
    each = torch.eye(subject.d_model)  # a reader's weight on each coordinate of the stream
    reads = {LOGITS: subject.unembed().float().clone()}
    for name, part in named.items():
        every = torch.arange(part.spec.n_latents)
        reads[name] = virtual_weights(subject, part, each, every)
        if part.spec.gated:
            reads[f"{name}.{GATE}"] = virtual_weights(subject, part, each, every, gate=True)
    return FactoredEdges(edges, writes, {name: reads[name].contiguous() for name in spec.readers})
