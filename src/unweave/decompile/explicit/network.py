"""The decompiled network run on virtual weights alone.

    pre_t = (1 / s(x)) sum over writers w on of a_w V[w, t] + c_t        s(x)^2 = a M a + eps

No vector of the residual stream exists at any point: tokens are writers, readers read strengths,
the norms' scales come from the Gram matrix, scores from pairs of features, logits from strengths.
`DecompiledNetwork` computes the same function in factored form, through decoder and encoder
matrices, which is faster; the two agree to rounding, and a test holds them to it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unweave.decompile.explicit.active import Active
from unweave.decompile.explicit.pairs import Pairs, pair_features
from unweave.decompile.explicit.virtual import LOGITS, VirtualWeights, derive
from unweave.decompile.explicit.writers import OFFSET, START
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import KINDS
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.subject.scores import pattern, scoring


class ExplicitNetwork:
    """A decompiled network in explicit form.

    ```python
    network = ExplicitNetwork(subject, parts)
    logits = network(tokens)  # [batch, pos, vocab]
    ```

    Parts must replace everything: `q`, `k`, `attn` and `mlp` of every layer.
    """

    def __init__(self, subject: Subject, parts: Mapping[str, Part]) -> None:
        wanted = [f"L{n}.{kind}" for n in range(subject.n_layers) for kind in KINDS]
        if missing := [name for name in wanted if name not in parts]:
            raise UserError(
                f"the decompiled network of {subject.name} has no part {missing[0]} "
                f"({len(missing)} missing), so it does not run in features alone; decompile it "
                "with sparse queries and keys"
            )
        self.layers, self.start_token = subject.n_layers, subject.start_token
        self.parallel, self.eps = subject.geometry.parallel, subject.norm_eps
        self.k = {name: parts[name].spec.k for name in wanted}
        self.weights: VirtualWeights = derive(subject, {name: parts[name] for name in wanted})
        self.pairs: list[Pairs] = [
            pair_features(
                parts[f"L{layer}.q"],
                parts[f"L{layer}.k"],
                heads=subject.n_heads,
                kv_heads=subject.n_kv_heads,
                scoring=scoring(subject, layer, subject.context),
            )
            for layer in range(subject.n_layers)
        ]

    @torch.no_grad()
    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos vocab"]:
        """Logits, from features alone."""
        at_start = self._at_start(tokens)
        writer = tokens.reshape(-1, 1)
        square = self.weights.gram.diagonal()[writer[:, 0]].double()
        active = Active(writer, torch.ones(writer.shape), square)
        for layer in range(self.layers):
            before = active
            patterns = self._patterns(before, layer, at_start)
            moved = self._moved(before, layer, patterns)
            active = self._write(f"L{layer}.attn", moved, active, at_start)
            name = f"L{layer}.mlp"
            pre = self._pre(before if self.parallel else active, name)
            active = self._write(name, pre, active, at_start)
        return self._pre(active, LOGITS).unflatten(0, tokens.shape)

    def _at_start(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where a start token stands first in its row, if that is so in all rows."""
        first = torch.zeros(tokens.shape, dtype=torch.bool)
        if self.start_token is not None:
            first[:, 0] = (tokens[:, 0] == self.start_token).all()
        return first

    def _pre(self, active: Active, name: str) -> Float[Tensor, "rows readers"]:
        return active.read(self.weights.reads[name], self.eps) + self.weights.offsets[name]

    def _patterns(
        self, active: Active, layer: int, at_start: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch heads query key"]:
        queries, keys = (self._on(n, self._pre(active, n), at_start) for n in _query_key(layer))
        rows = zip(*(t.unflatten(0, at_start.shape) for t in (*queries, *keys)), strict=True)
        pairs = self.pairs[layer]
        return pattern(torch.stack([pairs.scores((a, x), (b, y)) for a, x, b, y in rows]))

    def _moved(
        self, active: Active, layer: int, patterns: Float[Tensor, "batch heads query key"]
    ) -> Float[Tensor, "rows latents"]:
        """Pre-activations of attention latents: what they read at each source, moved and summed."""
        name = f"L{layer}.attn"
        read = active.read(self.weights.reads[name], self.eps)
        by_head = read.unflatten(0, (len(patterns), -1))
        by_head = by_head.unflatten(-1, (patterns.shape[1], -1))
        moved = torch.einsum("bhts,bshi->bthi", patterns, by_head)
        return moved.flatten(2).flatten(0, 1) + self.weights.offsets[name]

    def _on(
        self, name: str, pre: Float[Tensor, "rows latents"], at_start: Bool[Tensor, "batch pos"]
    ) -> tuple[Int[Tensor, "rows on"], Float[Tensor, "rows on"]]:
        """The k latents that are on and the part's two constants, numbered within the part."""
        value, latent = pre.relu().topk(self.k[name], dim=1)
        first = at_start.reshape(-1, 1)
        value = value.masked_fill(first, 0.0)
        constants = torch.tensor([OFFSET, START]) + pre.shape[1]
        latent = torch.cat([latent, constants.expand(len(pre), -1)], 1)
        return latent, torch.cat([value, (~first).to(value), first.to(value)], 1)

    def _write(
        self,
        name: str,
        pre: Float[Tensor, "rows latents"],
        active: Active,
        at_start: Bool[Tensor, "batch pos"],
    ) -> Active:
        latent, value = self._on(name, pre, at_start)
        return active.joined(latent + self.weights.writers.first[name], value, self.weights.gram)


def _query_key(layer: int) -> tuple[str, str]:
    return f"L{layer}.q", f"L{layer}.k"
