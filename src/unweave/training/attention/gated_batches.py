"""What gated blocks are trained on: rows of a subject's text, or tables of tokens.

Where what attention reads is one vector a token and no position (the toy worlds), scores, gates and
values are tables over tokens, and a place is told by its token and by how often each token came
before it. `TableBatch` is the same loss in that form, with the gates' term over all rows instead of
a batch's, at a hundredth of the cost.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.dictionaries.attention.gated_block import GatedBlock
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.training.attention.gated import GatedLoss, norm_over_heads

_FAR = 80.0
"""Scores this far below a query's highest count as this far: e^-80 is still a float32."""


class RowsBatch(NamedTuple):
    """What each of several blocks is to read and to write, on whole rows."""

    x: Float[Tensor, "blocks batch pos d_model"]
    """The originals' `attn.in`."""
    y: Float[Tensor, "blocks batch pos d_model"]
    """Their `attn.out`."""

    def loss(self, block: GatedBlock, power: float) -> GatedLoss:
        """See `Batch.loss`; there, `x` and `y` are one block's."""
        passed = block.watch(self.x)
        norm = norm_over_heads(passed.gate, power)
        causal = torch.ones_like(norm[0]).tril()
        gates = (norm * causal).sum() / (causal.sum() * len(norm))
        return GatedLoss((passed.output - self.y).square().mean(), gates)


class SubjectRows:
    """One layer's attention in each of several subjects of one shape, on rows drawn at random."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        tokens: Int[Tensor, "rows pos"],
        *,
        layer: int,
        rows: int,
        steps: int,
        seed: int,
    ) -> None:
        self._subjects, self._tokens, self._rows, self._seed = subjects, tokens, rows, seed
        self._layer, self.steps = layer, steps

    def at(self, step: int) -> RowsBatch:
        """The same rows for every subject, drawn with replacement by the step alone."""
        generator = torch.Generator().manual_seed((self._seed << 24) + step)
        drawn = torch.randint(len(self._tokens), (self._rows,), generator=generator)
        seen = [_in_and_out(one, self._tokens[drawn], self._layer) for one in self._subjects]
        return RowsBatch(torch.stack([x for x, _ in seen]), torch.stack([y for _, y in seen]))


class TableBatch(NamedTuple):
    """What each of several blocks is to read and to write, by token.

    `drawn` places of each token, however often the token comes: `share` weighs them.
    """

    x: Float[Tensor, "blocks token d_model"]
    """What attention reads of each token."""
    seen: Float[Tensor, "blocks token drawn token"]
    """How often each token (last axis) is there up to a place of a token (second axis)."""
    y: Float[Tensor, "blocks token drawn d_model"]
    """What is to be written there."""
    share: Float[Tensor, "blocks token"]
    """Of all places, each token's."""
    pairs: Float[Tensor, "blocks token token"]
    """Of all pairs of a place and one that it sees, those of each two tokens."""

    def loss(self, block: GatedBlock, power: float) -> GatedLoss:
        """See `Batch.loss`; there, every field is one block's."""
        gate, scores = block.gates(self.x[None])[0], block.scores(self.x[None])[0]
        weight = (scores - scores.amax(-1, keepdim=True)).clamp_min(-_FAR).exp()
        values = block.values(self.x[None])[0]
        carried = (gate * weight)[..., None] * values[:, None]
        both = torch.cat([carried, weight[..., None]], -1)  # last, the softmax's denominator
        arrived = torch.einsum("qns,hqsd->qhnd", self.seen, both)
        z = arrived[..., :-1] / arrived[..., -1:]
        error = (block.written(z) - self.y).square().mean((1, 2))
        gates = norm_over_heads(gate[None], power)[0]
        return GatedLoss((error * self.share).sum(), (gates * self.pairs).sum())


class TokenTables:
    """One layer's attention in each of several subjects, which read one vector a token."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        tokens: Int[Tensor, "rows pos"],
        *,
        drawn: int,
        steps: int,
        seed: int,
        layer: int = 0,
    ) -> None:
        """Raises a UserError where a token never comes, or attention reads more than the token."""
        self._drawn, self.steps, self._seed = drawn, steps, seed
        size = subjects[0].vocab_size
        counted = torch.nn.functional.one_hot(tokens, size).cumsum(1).float().flatten(0, 1)
        place, self._blocks = tokens.flatten(), len(subjects)
        if missing := sorted(set(range(size)) - set(place.unique().tolist())):
            raise UserError(
                f"Token {missing[0]} is in none of {len(tokens)} rows, so it has no place in a "
                "table; draw more rows, or train on rows"
            )
        both = [_in_and_out(one, tokens, layer) for one in subjects]
        read = [torch.stack([x.flatten(0, 1)[place == t][0] for t in range(size)]) for x, _ in both]
        for one, (x, _), table in zip(subjects, both, read, strict=True):
            if not torch.equal(table[tokens], x):
                raise UserError(
                    f"Attention of {one.name} reads more than the token at a place, so it has no "
                    "tables; train on rows"
                )
        self._x = torch.stack(read)
        self._seen = [counted[place == t] for t in range(size)]
        self._y = [torch.stack([y.flatten(0, 1)[place == t] for _, y in both]) for t in range(size)]
        share = torch.bincount(place, minlength=size) / len(place)
        pairs = torch.stack([seen.sum(0) for seen in self._seen])
        self._share = share.expand(self._blocks, -1)
        self._pairs = (pairs / pairs.sum()).expand(self._blocks, -1, -1)

    def at(self, step: int) -> TableBatch:
        """Places of every token, drawn with replacement by the step alone."""
        generator = torch.Generator().manual_seed((self._seed << 24) + step)
        drawn = [torch.randint(len(s), (self._drawn,), generator=generator) for s in self._seen]
        seen = torch.stack([rows[d] for rows, d in zip(self._seen, drawn, strict=True)])
        y = torch.stack([rows[:, d] for rows, d in zip(self._y, drawn, strict=True)], 1)
        return TableBatch(
            self._x, seen.expand(self._blocks, -1, -1, -1), y, self._share, self._pairs
        )


@torch.no_grad()
def _in_and_out(subject: Subject, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    sites = [f"blocks.{layer}.attn.{side}" for side in ("in", "out")]
    found = subject.run(tokens, capture=sites, logits=False).sites
    return found[sites[0]].float(), found[sites[1]].float()
