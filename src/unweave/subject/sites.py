"""Sites: names of places in a network where vectors flow, the same for every architecture.

`attn.out` and `mlp.out` are what the attention output projection and the MLP module return: what a
part of the decompiled network replaces. In most families that is what is added to the residual
stream; Gemma 2 and 3 pass it through one more norm first.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from unweave.errors import UserError
from unweave.subject.families import Family

BLOCK_SITES = (
    "resid_pre", "attn.in", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.out",
    "resid_mid", "mlp.in", "mlp.mid", "mlp.out", "resid_post",
)  # fmt: skip
"""Sites of one block, in the order in which they are computed."""

_ALIASES = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post",
    "attn.hook_q": "attn.q", "attn.hook_k": "attn.k", "attn.hook_v": "attn.v",
    "attn.hook_z": "attn.z", "attn.hook_pattern": "attn.pattern", "hook_attn_out": "attn.out",
    "mlp.hook_post": "mlp.mid", "hook_mlp_out": "mlp.out",
}  # fmt: skip

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def canonical(name: str) -> str:
    """The site name that a TransformerLens name stands for; any other name as it is."""
    if name == "hook_embed":
        return "embed"
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _ALIASES:
        return f"blocks.{match[1]}.{_ALIASES[match[2]]}"
    return name


@dataclass(frozen=True)
class Heads:
    """How per-head vectors lie in the output of a projection."""

    heads: int
    width: int
    part: int | None = None
    """Which of q, k, v this is in a fused projection; None in a projection of its own."""
    fused: Literal["concatenated", "interleaved"] | None = None

    def read(self, tensor: Tensor) -> Tensor:
        """Give the vectors as [batch, pos, heads, width], a view."""
        if self.fused == "interleaved":
            return tensor.unflatten(-1, (self.heads, 3, self.width))[..., self.part, :]
        if self.fused == "concatenated":
            return tensor.unflatten(-1, (3, self.heads, self.width))[..., self.part, :, :]
        return tensor.unflatten(-1, (self.heads, self.width))

    def write(self, tensor: Tensor, value: Tensor) -> Tensor:
        """Give the projection's output with these vectors put in, leaving the original alone."""
        if self.fused is None:
            return value.flatten(-2)
        whole = tensor.clone()
        self.read(whole).copy_(value)
        return whole


@dataclass(frozen=True)
class Place:
    """Where a site is in the module tree."""

    module: str
    """Path of the module."""
    side: Literal["in", "out", "pattern", "model"]
    """Its first input, its output, its attention pattern, or what the whole model returns."""
    heads: Heads | None = None
    """How the site lies in that tensor, where it is not the whole of it."""
    in_place: bool = False
    """Whether others hold the same tensor, so that a replacement must be written into it."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a network that a table row describes."""

    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    context: int
    parallel: bool
    """Whether attention and MLP read the same stream."""


def list_sites(geometry: Geometry) -> list[str]:
    """All sites of a network that a table row describes, in the order of computation."""
    block = [s for s in BLOCK_SITES if not (geometry.parallel and s == "resid_mid")]
    inner = [f"blocks.{i}.{site}" for i in range(geometry.n_layers) for site in block]
    return ["embed", *inner, "final", "logits"]


def find_place(
    name: str, *, subject: str, model: nn.Module, family: Family | None, geometry: Geometry | None
) -> Place:
    """Find where a site is; a `UserError` names the nearest sites when there is none."""
    site = canonical(name)
    if site == "logits":
        return Place("", "model")
    if family and geometry:
        place = _table_place(site, family, geometry)
        if place:
            return place
        if geometry.parallel and site.endswith(".resid_mid"):
            raise UserError(
                f"{subject} adds attention and MLP to the same stream at once, so {name} does not "
                "exist in it; use resid_pre, attn.out and mlp.out"
            )
    path, _, side = site.partition(":")
    if side in ("", "in", "out") and path in dict(model.named_modules()):
        return Place(path, "in" if side == "in" else "out")
    raise UserError(_unknown(name, subject, model, geometry))


def _table_place(site: str, family: Family, geometry: Geometry) -> Place | None:
    if site == "embed":
        return Place(family.embed, "out")
    if site == "final":
        return Place(family.final_norm, "out")
    match = _BLOCK.fullmatch(site)
    if not match or int(match[1]) >= geometry.n_layers:
        return None
    block = f"{family.blocks}.{int(match[1])}"
    what = match[2]
    if what in ("attn.q", "attn.k", "attn.v"):
        return _projection_place(block, "qkv".index(what[-1]), family, geometry)
    simple = {
        "resid_pre": Place(block, "in"),
        "attn.in": Place(f"{block}.{family.attn_norm}", "out"),
        "attn.z": Place(f"{block}.{family.attn_out}", "in"),
        "attn.out": Place(f"{block}.{family.attn_out}", "out"),
        "attn.pattern": Place(f"{block}.{family.attn}", "pattern"),
        # The sum that the norm reads is also what the block's MLP is added to.
        "resid_mid": Place(f"{block}.{family.mlp_norm}", "in", in_place=True),
        "mlp.in": Place(f"{block}.{family.mlp_norm}", "out"),
        "mlp.mid": Place(f"{block}.{family.mlp_down}", "in"),
        "mlp.out": Place(f"{block}.{family.mlp}", "out"),
        "resid_post": Place(block, "out"),
    }
    if what == "resid_mid" and geometry.parallel:
        return None
    if what == "attn.pattern" and family.pattern:
        return Place(f"{block}.{family.pattern}", "out")
    return simple.get(what)


def _projection_place(block: str, part: int, family: Family, geometry: Geometry) -> Place:
    heads = geometry.n_heads if part == 0 else geometry.n_kv_heads
    if family.fused:
        view = Heads(heads, geometry.d_head, part, family.fused)
        return Place(f"{block}.{family.qkv[0]}", "out", view)
    return Place(f"{block}.{family.qkv[part]}", "out", Heads(heads, geometry.d_head))


def _unknown(name: str, subject: str, model: nn.Module, geometry: Geometry | None) -> str:
    if geometry:
        match = _BLOCK.fullmatch(canonical(name))
        if match and int(match[1]) >= geometry.n_layers:
            return f"{subject} has no site {name}: its blocks are 0 to {geometry.n_layers - 1}"
        return f"{subject} has no site {name}; nearest: {_near(canonical(name), geometry, model)}"
    paths = [path for path, _ in model.named_modules() if path]
    near = difflib.get_close_matches(name, paths, n=3, cutoff=0.3) or paths[:3]
    return (
        f"{subject} is of an architecture that no row of the table knows, and {name} is none of "
        f"its modules; name a site by a module path, such as {', '.join(near)} (its output) or "
        f"{near[0] if near else 'PATH'}:in (its first input), or describe the architecture with "
        "unweave.subject.register_family"
    )


def _near(name: str, geometry: Geometry, model: nn.Module) -> str:
    known: Sequence[str] = [*list_sites(geometry), *(path for path, _ in model.named_modules())]
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
    return ", ".join(near or ["embed", *(f"blocks.0.{s}" for s in BLOCK_SITES), "final", "logits"])
