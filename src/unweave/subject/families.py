"""The table of architectures: one row a family says where its parts lie.

Paths are module paths as `nn.Module.get_submodule` takes them; those of a block are relative to it.
A row is all that a new architecture needs (`register_family`).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Where the parts of one family of decoder-only language models lie."""

    name: str
    """What the family is called in artifacts and messages."""
    model_types: tuple[str, ...]
    """The `model_type` values of Hugging Face configs that this row serves."""
    embed: str
    """Token embedding; its output is the site `embed`."""
    blocks: str
    """The list of blocks."""
    final_norm: str
    """Last norm; its output is the site `final`."""
    attn_norm: str
    """Norm before attention; its output is `attn.in`."""
    mlp_norm: str
    """Norm before the MLP; its input is `resid_mid`, its output `mlp.in`."""
    attn: str
    """The module that calls the attention function."""
    qkv: tuple[str, ...]
    """Query, key and value projections, or the one module that holds all three."""
    attn_out: str
    """Attention output projection; its input is `attn.z`, its output `attn.out`."""
    mlp: str
    """The MLP; its output is `mlp.out`."""
    mlp_up: str
    """First projection, the one that is not passed through the activation where there is a gate."""
    mlp_down: str
    """Last projection; its input is `mlp.mid`."""
    mlp_gate: str | None = None
    """The projection that is passed through the activation, where there is a gate."""
    head: str = "lm_head"
    """Unembedding."""
    fused: Literal["concatenated", "interleaved"] | None = None
    """How one qkv module orders its output: all q, all k, all v; or q, k, v of each head."""
    input_major: bool = False
    """Whether weights are stored [in, out] (GPT-2's Conv1D) rather than [out, in]."""
    gain_offset: float = 0.0
    """What is added to a norm's weight to give its gain: 1 for Gemma, which stores gain - 1."""
    pattern: str | None = None
    """A module whose output is the pattern; None where attention goes through the registry."""
    attn_post_norm: str | None = None
    """Norm that what attention writes passes before it reaches the stream, where there is one."""
    mlp_post_norm: str | None = None
    """Norm that what the MLP writes passes before it reaches the stream, where there is one."""
    positions: str | None = None
    """Embedding of positions that is added to that of tokens, where there is one."""
    parallel: str | None = None
    """Config attribute that says that attention and MLP read the same stream (no `resid_mid`)."""


_LLAMA = Family(
    name="llama",
    model_types=("llama",),
    embed="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attn="self_attn",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_out="self_attn.o_proj",
    mlp="mlp",
    mlp_up="mlp.up_proj",
    mlp_gate="mlp.gate_proj",
    mlp_down="mlp.down_proj",
)


def _like_llama(name: str, *model_types: str) -> Family:
    return Family(**{**vars(_LLAMA), "name": name, "model_types": model_types})


def _gemma(name: str, *model_types: str) -> Family:
    # Gemma 2 and 3 norm what a block reads and what it writes; the norm before the MLP is named
    # for its place, and every norm stores its gain less one.
    row = {
        "mlp_norm": "pre_feedforward_layernorm",
        "attn_post_norm": "post_attention_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
        "gain_offset": 1.0,
    }
    return Family(**{**vars(_LLAMA), "name": name, "model_types": model_types, **row})


_GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    embed="transformer.wte",
    positions="transformer.wpe",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    attn="attn",
    qkv=("attn.c_attn",),
    fused="concatenated",
    attn_out="attn.c_proj",
    mlp="mlp",
    mlp_up="mlp.c_fc",
    mlp_down="mlp.c_proj",
    input_major=True,
)

_GPT_NEOX = Family(
    name="gpt-neox",
    model_types=("gpt_neox",),
    embed="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    attn="attention",
    qkv=("attention.query_key_value",),
    fused="interleaved",
    attn_out="attention.dense",
    mlp="mlp",
    mlp_up="mlp.dense_h_to_4h",
    mlp_down="mlp.dense_4h_to_h",
    parallel="use_parallel_residual",
)

_GPT_NEO = Family(
    name="gpt-neo",
    model_types=("gpt_neo",),
    embed="transformer.wte",
    positions="transformer.wpe",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attn_norm="ln_1",
    mlp_norm="ln_2",
    attn="attn.attention",
    qkv=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
    attn_out="attn.attention.out_proj",
    mlp="mlp",
    mlp_up="mlp.c_fc",
    mlp_down="mlp.c_proj",
    pattern="attn.attention.attn_dropout",
)

_TABLE: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Add a row, or replace the rows of the same `model_types`."""
    for model_type in family.model_types:
        _TABLE[model_type] = family


for _row in (
    _LLAMA,
    _like_llama("mistral", "mistral"),
    _like_llama("qwen2", "qwen2"),
    _like_llama("qwen3", "qwen3"),
    _gemma("gemma2", "gemma2"),
    _gemma("gemma3", "gemma3_text"),
    _GPT2,
    _GPT_NEOX,
    _GPT_NEO,
):
    register_family(_row)


def find_family(model_type: str | None) -> Family | None:
    """The row that serves a `model_type`, or None."""
    return _TABLE.get(model_type or "")


def families() -> list[Family]:
    """All rows, each once."""
    return list({family.name: family for family in _TABLE.values()}.values())
