"""What a network of layers of features is, apart from its weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator


class BlockSpec(BaseModel):
    """One block: from the features before it to the features after it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    form: Literal["matrix", "features"] = "features"
    """`matrix`: a matrix moves features along each head's pattern, another maps them in place.
    `features`: both go through sparse features of their own, values and interactions."""
    tokens: bool = False
    """Whether the features before it are tokens."""
    n_in: PositiveInt
    """Latents before it, or tokens of the vocabulary."""
    n_out: PositiveInt
    """Latents after it."""
    k_out: PositiveInt
    """How many of these are active."""
    heads: PositiveInt
    """Patterns along which features are moved."""
    values: NonNegativeInt = 0
    """Value features, in equal shares to the heads."""
    k_value: NonNegativeInt = 0
    """Value features active per token, where they arrive."""
    interactions: NonNegativeInt = 0
    """Interaction features."""
    k_interaction: NonNegativeInt = 0
    """Interaction features active per token."""
    skip: bool = True
    """Whether a further matrix reads the features as they are, past the norm."""

    @model_validator(mode="after")
    def _agree(self) -> "BlockSpec":
        wanted = self.form == "features"
        if wanted != bool(self.values) or wanted != bool(self.interactions):
            raise ValueError("value and interaction features go with form `features` alone")
        if self.values % self.heads:
            raise ValueError(f"{self.heads} heads do not share {self.values} value features")
        if not wanted and (self.k_value or self.k_interaction):
            raise ValueError("a matrix has no active features of its own")
        if self.k_value > self.values or self.k_interaction > self.interactions:
            raise ValueError("no more features can be active than there are")
        if self.k_out > self.n_out:
            raise ValueError(f"k_out={self.k_out} exceeds its {self.n_out} latents")
        return self

    @property
    def features_in(self) -> int:
        """Features before it, the two constants included."""
        return self.n_in if self.tokens else self.n_in + CONSTANTS


class PatternSpec(BaseModel):
    """Where a block's heads look, from query features and key features."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    queries: PositiveInt
    """Query features."""
    k_query: PositiveInt
    """How many of them are active at a token."""
    keys: PositiveInt
    """Key features."""
    k_key: PositiveInt
    """How many of them are active at a token."""


class LayersSpec(BaseModel):
    """A network that runs from the tokens' features to those of the last layer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str
    """Name of the network that it was made from."""
    fingerprint: str
    """Hash of that network's weights."""
    blocks: tuple[BlockSpec, ...]
    """In the order of computation."""
    patterns: tuple[PatternSpec, ...] = ()
    """One a block; none where patterns are given from outside."""
    kv_heads: PositiveInt
    """Key heads of a block."""
    d_head: PositiveInt
    """Width in which a head compares queries with keys."""
    vocab: PositiveInt
    """Tokens."""
    start_token: int
    """The token that every row begins with."""
    eps: float
    """What the norms add under the root."""

    @model_validator(mode="after")
    def _chained(self) -> "LayersSpec":
        for before, after in zip(self.blocks, self.blocks[1:], strict=False):
            if before.n_out != after.n_in or after.tokens:
                raise ValueError("a block reads the features that the one before it writes")
        if not self.blocks or not self.blocks[0].tokens or self.blocks[0].n_in != self.vocab:
            raise ValueError("the first block reads tokens")
        if self.patterns and len(self.patterns) != len(self.blocks):
            raise ValueError("patterns from features are needed in all blocks, or in none")
        return self


CONSTANTS = 2
"""Features behind the latents of a layer: its offset, on everywhere but at the start token, and
what stands at the start token, where nothing else is on."""
