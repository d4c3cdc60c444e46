"""The network of edges as dense tables with masks: what is trained and pruned."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.explicit.pairs import Pairs
from unweave.decompile.explicit.plain import refuse_unless_plain
from unweave.decompile.explicit.writers import number_writers, written
from unweave.decompile.sparse.machine import Strengths, Trace, trace
from unweave.decompile.sparse.reading import ReadEdges
from unweave.decompile.sparse.spec import GATE, EdgeSpec
from unweave.dictionaries.kernels.sparse import product_dtype
from unweave.dictionaries.part import Part
from unweave.subject import Subject


class EdgeNetwork:
    """Tables [writers, readers] of edges, free to be anything, and which of them are kept.

    A table's rows are tokens first, then each part's latents and two constants. At the start they
    are the virtual weights of a decompiled network (`edges_of`); after that they are edges in
    their own right, of no rank that the stream's width would bound.
    """

    def __init__(
        self,
        spec: EdgeSpec,
        tables: Mapping[str, Float[Tensor, "_ _"]],
        offsets: Mapping[str, Float[Tensor, " _"]],
        queries: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        theta: Float[Tensor, " planes"],
        gram_root: Float[Tensor, "writers rank"],
    ) -> None:
        self.spec = spec
        self.tables = dict(tables)
        self.offsets: Mapping[str, Tensor] = dict(offsets)
        self.queries: Mapping[str, Tensor] = dict(queries)
        self.keys: Mapping[str, Tensor] = dict(keys)
        self.theta = theta
        self.gram_root = gram_root
        """Any square root of the Gram matrix of what is written, over the stream's width."""
        self.kept: dict[str, Bool[Tensor, "_ _"]] = {}
        """Masks of tables that have been pruned."""
        self._counts: dict[str, int] = {}
        self.dtype = torch.float32
        """Number format of products; `fast` sets it."""

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits; differentiable in tables, offsets, queries and keys."""
        logits = self.trace(tokens).logits
        assert logits is not None
        return logits

    def trace(self, tokens: Int[Tensor, "batch pos"]) -> Trace:
        """Everything that happened on the way to the logits."""
        return trace(self, tokens)

    def fast(self, yes: bool = True) -> "EdgeNetwork":
        """Multiply in bfloat16 where the processor can (training), or exactly (measuring)."""
        self.dtype = product_dtype() if yes else torch.float32
        return self

    def read(self, strengths: Strengths, reader: str) -> Float[Tensor, "rows readers"]:
        """Sum over what is on of strength times edge."""
        table = self.tables[reader]
        return ReadEdges.apply(
            strengths.on, strengths.token, table, self.kept.get(reader), self.dtype
        )

    def scale(self, strengths: Strengths, norm: str) -> Float[Tensor, " rows"]:
        """What a norm divides by."""
        on, vocab = strengths.on, self.spec.vocab
        root = self.gram_root
        whole = on @ root[vocab : vocab + on.shape[1]] + root[strengths.token]
        return (whole.square().sum(1) + self.spec.eps).sqrt()

    def parameters(self) -> dict[str, Tensor]:
        """All that can be trained, by name."""
        tables = {f"table/{name}": table for name, table in self.tables.items()}
        return tables | {f"{what}/{name}": tensor for what, name, tensor in self.others()}

    def others(self) -> list[tuple[str, str, Tensor]]:
        """Everything but the tables: what it is, whose, and the numbers."""
        named = (("offset", self.offsets), ("query", self.queries), ("key", self.keys))
        return [(what, name, t) for what, group in named for name, t in group.items()]

    def keep(self, masks: Mapping[str, Bool[Tensor, "_ _"]]) -> None:
        """Cut all edges outside the masks; what is cut stays cut."""
        for name, mask in masks.items():
            self.kept[name], self._counts[name] = mask, int(mask.sum())
            with torch.no_grad():
                self.tables[name].mul_(mask)

    @property
    def edges(self) -> int:
        """Edges kept."""
        return sum(self._counts.get(name, table.numel()) for name, table in self.tables.items())

    @property
    def entries(self) -> int:
        """Edges that there were before any was cut."""
        return sum(table.numel() for table in self.tables.values())

    def copy(self) -> "EdgeNetwork":
        """A network of its own with the same numbers."""
        tables, offsets, queries, keys = (
            {name: tensor.detach().clone() for name, tensor in group.items()}
            for group in (self.tables, self.offsets, self.queries, self.keys)
        )
        twin = EdgeNetwork(self.spec, tables, offsets, queries, keys, self.theta, self.gram_root)
        twin.keep({name: mask.clone() for name, mask in self.kept.items()})
        return twin


def edges_of(subject: Subject, parts: Mapping[str, Part]) -> EdgeNetwork:
    """The virtual weights of a decompiled network as a network of edges: the same function.

    Raises:
        UserError: parts are missing, or the network's virtual weights are no plain sums, as
            `explicit.plain.refuse_unless_plain` says.
    """
    explicit = ExplicitNetwork(subject, parts)
    refuse_unless_plain(explicit, gates=True)
    virtual, pairs = explicit.weights, explicit.pairs
    named = {n: p for n, p in parts.items() if n in virtual.reads}
    vectors = written(subject, named, number_writers(subject, named))
    layers = range(subject.n_layers)
    spec = EdgeSpec(
        subject=subject.name,
        fingerprint=subject.fingerprint,
        layers=subject.n_layers,
        heads=subject.n_heads,
        kv_heads=subject.n_kv_heads,
        vocab=subject.vocab_size,
        start_token=subject.start_token,
        parallel=subject.geometry.parallel,
        eps=subject.norm_eps,
        score_scale=pairs[0].scale,
        latents={name: part.spec.n_latents for name, part in named.items()},
        k={name: part.spec.k for name, part in named.items()},
        gated=tuple(virtual.gates),
    )
    return EdgeNetwork(
        spec,
        dict(virtual.reads) | {f"{n}.{GATE}": table for n, (table, _) in virtual.gates.items()},
        dict(virtual.offsets) | {f"{n}.{GATE}": shift for n, (_, shift) in virtual.gates.items()},
        {f"L{n}.q": _planes(pairs[n], "queries") for n in layers},
        {f"L{n}.k": _planes(pairs[n], "keys") for n in layers},
        pairs[0].theta,
        vectors / subject.d_model**0.5,
    )


def _planes(pairs: Pairs, which: str) -> Float[Tensor, "features heads planes 2"]:
    return torch.view_as_real(getattr(pairs, which)).contiguous()
