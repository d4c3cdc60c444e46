"""Names of parts: `L7.mlp` stands in for the MLP of block 7, and so on.

`attn` moves values along whatever pattern the block has; `q` and `k` give the queries and keys of
which the block makes that pattern (rotary embedding, norms of heads, groups, masks and caches are
the subject's own).
"""

from typing import Literal, NamedTuple

KINDS = ("q", "k", "attn", "mlp")
"""Kinds of parts, in the order in which a block computes them."""

_SITES = {
    "q": ("attn.in", "attn.q"),
    "k": ("attn.in", "attn.k"),
    "attn": ("attn.z", "attn.out"),
    "mlp": ("mlp.in", "mlp.out"),
}


class PartPlace(NamedTuple):
    """Which part of which block."""

    layer: int
    """The block."""
    kind: str
    """One of `KINDS`."""

    @property
    def order(self) -> tuple[int, int]:
        """Sorts parts in the order of computation."""
        return self.layer, KINDS.index(self.kind)

    @property
    def norm(self) -> Literal["attn", "mlp"]:
        """Which of the block's two norms it reads through and writes through."""
        return "mlp" if self.kind == "mlp" else "attn"

    @property
    def writes_stream(self) -> bool:
        """Whether what it writes is added to the residual stream; queries and keys are not."""
        return self.kind in ("attn", "mlp")


def place_of(part: str) -> PartPlace:
    """Where a part is, from its name.

    >>> place_of("L7.mlp")
    PartPlace(layer=7, kind='mlp')
    """
    layer, kind = part.removeprefix("L").split(".")
    return PartPlace(int(layer), kind)


def input_site(part: str) -> str:
    """The site that a part of this name reads."""
    layer, kind = place_of(part)
    return f"blocks.{layer}.{_SITES[kind][0]}"


def output_site(part: str) -> str:
    """The site that a part of this name writes; heads lie side by side."""
    layer, kind = place_of(part)
    return f"blocks.{layer}.{_SITES[kind][1]}"
