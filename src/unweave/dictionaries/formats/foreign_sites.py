"""Names of places in a network, between ours and those of other libraries."""

import re

from unweave.subject.sites import canonical

UNKNOWN = "unknown"
"""The site of a dictionary whose folder does not say where it belongs."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MODULE = re.compile(
    r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d+)(?:\.(mlp|attn|self_attn|attention))?"
)
_NUMBERED = re.compile(r"(resid_pre|resid_post|mlp_out|attention_out|attn_out)_layer_(\d+)")
_LENS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn.z": "attn.hook_z",
    "attn.out": "hook_attn_out",
    "mlp.in": "mlp.hook_in",
    "mlp.mid": "mlp.hook_post",
    "mlp.out": "hook_mlp_out",
}
_MORE_LENS = {"mlp.hook_in": "mlp.in", "mlp.hook_out": "mlp.out", "hook_mlp_in": "resid_mid"}


def from_lens(name: str | None) -> str:
    """Our name of a TransformerLens hook; any other name as it is."""
    if not name:
        return UNKNOWN
    match = _BLOCK.fullmatch(name)
    if match and match[2] in _MORE_LENS:
        return f"blocks.{match[1]}.{_MORE_LENS[match[2]]}"
    return canonical(name)


def to_lens(site: str) -> str:
    """The TransformerLens hook of one of our sites; any other name as it is."""
    match = _BLOCK.fullmatch(site)
    if match and match[2] in _LENS:
        return f"blocks.{match[1]}.{_LENS[match[2]]}"
    return "hook_embed" if site == "embed" else site


def from_module(name: str, *, transcoder: bool) -> tuple[str, str]:
    """What a dictionary of a module reads and writes, by the module's path.

    `layers.3`: the residual stream after the block. `layers.3.mlp`: the MLP's output, or from its
    input to its output for a transcoder.
    """
    match = _MODULE.fullmatch(name)
    if match is None:
        return (f"{name}:in" if transcoder else name), name
    layer, inner = match[1], {"mlp": "mlp", None: None}.get(match[2], "attn")
    if inner is None:
        reads, writes = f"blocks.{layer}.resid_pre", f"blocks.{layer}.resid_post"
    else:
        reads, writes = f"blocks.{layer}.{inner}.in", f"blocks.{layer}.{inner}.out"
    return (reads if transcoder else writes), writes


def to_module(site: str) -> str:
    """The hook point that stands for a site written; any other name as it is."""
    match = _BLOCK.fullmatch(site)
    inner = {"resid_post": "", "mlp.out": ".mlp", "attn.out": ".attn"}
    if match and match[2] in inner:
        return f"layers.{match[1]}{inner[match[2]]}"
    return site


def from_numbered(name: str | None, layer: int | None) -> str:
    """Our name of `resid_post_layer_3` and its kin, which dictionary_learning uses."""
    match = _NUMBERED.fullmatch(name or "")
    if match:
        what = {"mlp_out": "mlp.out", "attention_out": "attn.out", "attn_out": "attn.out"}
        return f"blocks.{match[2]}.{what.get(match[1], match[1])}"
    if name:
        return name
    return UNKNOWN if layer is None else f"blocks.{layer}.resid_post"


def layer_of(site: str) -> int | None:
    """The block that a site is in."""
    match = _BLOCK.fullmatch(site)
    return int(match[1]) if match else None
