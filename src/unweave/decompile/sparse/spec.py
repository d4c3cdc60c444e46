"""What a network of edges is, apart from its numbers."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

from unweave.decompile.explicit.virtual import LOGITS
from unweave.decompile.explicit.writers import CONSTANTS, TOKENS
from unweave.dictionaries.part_names import KINDS, place_of

NORM = "norm"
"""What a reader of a norm's scale is called: `L0.norm.attn`, `L0.norm.mlp`, `logit.norm`."""

GATE = "gate"
"""What readers of gates are called."""


class EdgeSpec(BaseModel):
    """The shape of a network whose forward pass is sums over edges."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str
    """Name of the network that was decompiled."""
    fingerprint: str
    """Its fingerprint."""
    layers: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Heads of a block."""
    kv_heads: PositiveInt
    """Key heads of a block."""
    vocab: PositiveInt
    """Tokens, and logits."""
    start_token: int | None
    """The token at which parts are constant where a row begins with it."""
    parallel: bool
    """Whether a block's MLP reads what its attention reads."""
    eps: NonNegativeFloat
    """Added to the stream's mean square."""
    score_scale: float
    """What products of queries and keys are multiplied by."""
    latents: Mapping[str, PositiveInt]
    """Latents of each part."""
    k: Mapping[str, PositiveInt]
    """How many of them are active at most."""
    gated: tuple[str, ...] = ()
    """Parts whose latents are silu(g) relu(u): g is read by readers of their own, `L0.mlp.gate`."""

    @property
    def parts(self) -> list[str]:
        """Parts in the order of computation."""
        return [f"L{layer}.{kind}" for layer in range(self.layers) for kind in KINDS]

    @property
    def readers(self) -> list[str]:
        """Tables of readers in the order of computation, logits last."""
        gates = {name: [f"{name}.{GATE}"] for name in self.gated}
        return [each for name in self.parts for each in (name, *gates.get(name, []))] + [LOGITS]

    @property
    def writers(self) -> dict[str, tuple[int, int]]:
        """First number and one past the last of each block of writers, tokens first."""
        found, first = {TOKENS: (0, self.vocab)}, self.vocab
        for name in self.parts:
            if place_of(name).writes_stream:
                found[name] = (first, first + self.latents[name] + CONSTANTS)
                first = found[name][1]
        return found

    @property
    def norm_names(self) -> list[str]:
        """The norms in the order of computation."""
        return list(dict.fromkeys(norm_before(name) for name in [*self.parts, LOGITS]))

    def seen(self, reader: str) -> int:
        """How many writers a part, the logits or a norm can read."""
        if reader in (LOGITS, norm_before(LOGITS)):
            return max(end for _, end in self.writers.values())
        layer, after_attention = _place(reader)
        sibling = after_attention and not self.parallel
        return self.writers[f"L{layer}.mlp" if sibling else f"L{layer}.attn"][0]


def norm_before(reader: str) -> str:
    """The norm through which a part or the logits read.

    >>> norm_before("L2.q")
    'L2.norm.attn'
    """
    if reader == LOGITS:
        return f"{LOGITS}.{NORM}"
    place = place_of(part_of(reader))
    return f"L{place.layer}.{NORM}.{place.norm}"


def part_of(reader: str) -> str:
    """The part, or the logits, that a table of readers belongs to.

    >>> part_of("L0.mlp.gate")
    'L0.mlp'
    """
    return reader.removesuffix(f".{GATE}")


def _place(reader: str) -> tuple[int, bool]:
    """The block of a reader, and whether it stands after that block's attention."""
    layer, *rest = reader.removeprefix("L").split(".")
    return int(layer), "mlp" in rest
