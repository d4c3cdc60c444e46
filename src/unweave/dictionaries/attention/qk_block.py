"""A block's own queries, keys and patterns, computed from what its attention reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.subject import Subject
from unweave.subject.scores import Scoring, pattern, scores, scoring


@dataclass(frozen=True)
class QKBlock:
    """The half of an attention block that decides where it looks."""

    W_Q: Float[Tensor, "heads d_in d_head"]
    """Queries: `x @ W_Q[h] + b_Q[h]` for x at `attn.in`."""
    b_Q: Float[Tensor, "heads d_head"]
    """Their offsets, zero where the block has none."""
    W_K: Float[Tensor, "kv_heads d_in d_head"]
    """Keys, each head once, however many query heads read it."""
    b_K: Float[Tensor, "kv_heads d_head"]
    """Their offsets."""
    scoring: Scoring
    """What turns the two into scores."""

    @property
    def group(self) -> int:
        """Query heads that read one key head."""
        return len(self.W_Q) // len(self.W_K)

    def queries(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch heads d_head"]:
        """Before rotary positions."""
        return torch.einsum("...i,hid->...hd", x, self.W_Q) + self.b_Q

    def keys(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch kv_heads d_head"]:
        """Before rotary positions."""
        return torch.einsum("...i,hid->...hd", x, self.W_K) + self.b_K

    def pattern(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch heads pos pos"]:
        """Where each query looks."""
        return pattern(scores(self.queries(x), self.keys(x), self.scoring))


def qk_block(subject: Subject, layer: int, n_positions: int) -> QKBlock:
    """A block's queries and keys in float32, for rows of up to `n_positions`.

    Raises:
        UserError: a layer whose scores are not products of its queries and keys (see
            `subject.scores`).
    """
    found = subject.attention_weights(layer)
    group = subject.n_heads // subject.n_kv_heads
    W_Q, W_K = found.W_Q.float(), found.W_K[::group].float()
    b_Q = W_Q.new_zeros(W_Q.shape[::2]) if found.b_Q is None else found.b_Q.float()
    b_K = W_K.new_zeros(W_K.shape[::2]) if found.b_K is None else found.b_K[::group].float()
    return QKBlock(W_Q, b_Q, W_K, b_K, scoring(subject, layer, n_positions))


@torch.no_grad()
def attention_inputs(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    layers: Sequence[int],
    *,
    rows_at_once: int = 8,
) -> dict[int, Float[Tensor, "rows pos d_model"]]:
    """What the attention of each of these blocks reads over rows of tokens, in float32."""
    sites = {layer: f"blocks.{layer}.attn.in" for layer in layers}
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for group in rows.split(rows_at_once):
        taken = subject.run(group, capture=list(sites.values()), logits=False).sites
        for layer, site in sites.items():
            found[layer].append(taken[site].float())
    return {layer: torch.cat(parts) for layer, parts in found.items()}
