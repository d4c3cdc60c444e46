"""What an artifact was made from, as both its manifest and its scores say it."""

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt


class Record(BaseModel):
    """A frozen entry of an artifact's JSON: no unknown keys, no NaN."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


class SubjectRecord(Record):
    """The network that was taken apart."""

    name: str
    """What it is called: `wren`, a folder's name, a hub id."""
    fingerprint: str
    """SHA-256 over its weights (names, types, shapes, bytes)."""
    family: str
    """Its architecture: `llama`, `gpt2` ..."""
    n_layers: PositiveInt
    """Blocks."""
    d_model: PositiveInt
    """Width of the residual stream."""
    d_mlp: PositiveInt
    """Neurons of an MLP."""
    n_heads: PositiveInt
    """Query heads of a block."""
    n_kv_heads: PositiveInt
    """Key and value heads of a block."""
    d_head: PositiveInt
    """Width of a head."""
    vocab_size: PositiveInt
    """Tokens it knows."""
    parameters: PositiveInt
    """Its weights, counted once where shared."""


class TextRecord(Record):
    """The text it was run on."""

    name: str
    """The source: `self`, `wiki`, a file's or folder's name, `hub:NAME`."""
    sha256: str
    """SHA-256 over the token rows used."""
    tokens: NonNegativeInt
    """Tokens trained on, rows times context, start tokens included."""
    heldout_tokens: NonNegativeInt
    """Tokens of held-out documents that the scores come from."""
    context: PositiveInt
    """Tokens in a row."""
