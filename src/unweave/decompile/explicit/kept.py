"""What an explicit network keeps of the positions it has seen.

A layer keeps the key features that were on at each and how strongly, and what its attention latents
read there: `k + 2` pairs and one number a latent. Nothing of the stream is left, for it never was.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.decompile.explicit.active import On


@dataclass
class Kept:
    """A cache; steps add to it in place. What `past_key_values` is to a Hugging Face model."""

    seen: int = 0
    """Positions kept."""
    keys: dict[int, On] = field(default_factory=dict)
    """By layer, the key features on at every position."""
    reads: dict[int, Float[Tensor, "batch pos latents"]] = field(default_factory=dict)
    """By layer, what attention latents read at every position."""

    def get_seq_length(self) -> int:
        """Positions kept, by the name that Hugging Face caches have for it."""
        return self.seen

    # A copy a step: what is kept is read whole in each step anyway.
    def add_keys(self, layer: int, on: On) -> On:
        """Take in the keys of new positions; give those of all."""
        if layer in self.keys:
            on = On(*(torch.cat(both, 1) for both in zip(self.keys[layer], on, strict=True)))
        self.keys[layer] = on
        return on

    def add_reads(
        self, layer: int, new: Float[Tensor, "batch pos latents"]
    ) -> Float[Tensor, "batch every latents"]:
        """Take in what was read at new positions; give what was read at all."""
        if layer in self.reads:
            new = torch.cat([self.reads[layer], new], 1)
        self.reads[layer] = new
        return new

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Keep some of the rows."""
        self.keys = {n: On(*(t[indices] for t in on)) for n, on in self.keys.items()}
        self.reads = {n: read[indices] for n, read in self.reads.items()}

    @property
    def numbers(self) -> int:
        """Numbers kept, features' own numbers among them."""
        lit = (t.numel() for on in self.keys.values() for t in on)
        return sum(lit) + sum(read.numel() for read in self.reads.values())
