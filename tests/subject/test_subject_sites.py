"""Sites are where they are said to be, in every family."""

import pytest
import torch
from torch import nn

from unweave.errors import UserError
from unweave.subject import Subject, wrap_module
from unweave.subject.sites import canonical

LLAMA = {
    "embed": "model.embed_tokens", "block": "model.layers.1", "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm", "attn_out": "self_attn.o_proj", "mlp": "mlp",
    "down": "mlp.down_proj", "final": "model.norm", "q": "self_attn.q_proj",
    "k": "self_attn.k_proj", "v": "self_attn.v_proj",
}  # fmt: skip
GPT = {
    "embed": "transformer.wte", "block": "transformer.h.1", "attn_norm": "ln_1",
    "mlp_norm": "ln_2", "attn_out": "attn.c_proj", "mlp": "mlp", "down": "mlp.c_proj",
    "final": "transformer.ln_f", "qkv": "attn.c_attn",
}  # fmt: skip
NEO = {
    **GPT, "attn_out": "attn.attention.out_proj", "q": "attn.attention.q_proj",
    "k": "attn.attention.k_proj", "v": "attn.attention.v_proj",
}  # fmt: skip
NEOX = {
    "embed": "gpt_neox.embed_in", "block": "gpt_neox.layers.1", "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm", "attn_out": "attention.dense", "mlp": "mlp",
    "down": "mlp.dense_4h_to_h", "final": "gpt_neox.final_layer_norm",
    "qkv": "attention.query_key_value",
}  # fmt: skip
GEMMA = {**LLAMA, "mlp_norm": "pre_feedforward_layernorm"}
MODULES = {
    "llama": LLAMA, "llama-bias": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA,
    "gemma2": GEMMA, "gemma3": GEMMA, "gpt2": GPT, "gpt-neo": NEO, "gpt-neox": NEOX,
    "gpt-neox-sequential": NEOX,
}  # fmt: skip


def spied(model: nn.Module, tokens: torch.Tensor) -> dict:
    """First input and output of every module of a plain forward pass, and its logits."""
    seen = {}

    def spy(path):
        def hook(module, args, kwargs, output):
            first = args[0] if args else kwargs.get("hidden_states")
            seen[path] = (first, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [
        module.register_forward_hook(spy(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path
    ]
    seen["logits"] = model(tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return seen


def split_qkv(subject: Subject, seen: dict, names: dict) -> dict:
    """q, k and v by hand, [batch, pos, heads, d_head]."""
    heads = {"q": subject.n_heads, "k": subject.n_kv_heads, "v": subject.n_kv_heads}
    if "q" in names:
        out = {s: seen[f"{names['block']}.{names[s]}"][1] for s in "qkv"}
        return {s: t.reshape(*t.shape[:2], heads[s], -1) for s, t in out.items()}
    whole = seen[f"{names['block']}.{names['qkv']}"][1]
    d_head = whole.shape[-1] // 3 // subject.n_heads
    batch, pos, _ = whole.shape
    if subject.family == "gpt2":
        parts = whole.split(whole.shape[-1] // 3, dim=-1)
    else:
        by_head = whole.reshape(batch, pos, subject.n_heads, 3 * d_head)
        parts = by_head.split(d_head, dim=-1)
    return {
        s: p.reshape(batch, pos, subject.n_heads, d_head) for s, p in zip("qkv", parts, strict=True)
    }


def test_captured_sites_equal_what_the_modules_computed(tiny, tokens):
    names = MODULES[tiny.name]
    seen = spied(tiny.model, tokens)
    block = names["block"]
    expected = {
        "embed": seen[names["embed"]][1],
        "blocks.1.resid_pre": seen[block][0],
        "blocks.1.attn.in": seen[f"{block}.{names['attn_norm']}"][1],
        "blocks.1.attn.z": seen[f"{block}.{names['attn_out']}"][0],
        "blocks.1.attn.out": seen[f"{block}.{names['attn_out']}"][1],
        "blocks.1.mlp.in": seen[f"{block}.{names['mlp']}"][0],
        "blocks.1.mlp.mid": seen[f"{block}.{names['down']}"][0],
        "blocks.1.mlp.out": seen[f"{block}.{names['mlp']}"][1],
        "blocks.1.resid_post": seen[block][1],
        "final": seen[names["final"]][1],
        "logits": seen["logits"],
    }
    expected |= {f"blocks.1.attn.{s}": t for s, t in split_qkv(tiny, seen, names).items()}
    if tiny.name != "gpt-neox":
        expected["blocks.1.resid_mid"] = seen[f"{block}.{names['mlp_norm']}"][0]
    run = tiny.run(tokens, capture=list(expected))
    for site, value in expected.items():
        torch.testing.assert_close(run.sites[site], value, rtol=0, atol=0, msg=site)


def test_every_site_is_captured_in_one_pass_and_the_logits_are_plain_hugging_face(tiny, tokens):
    plain = tiny.model(tokens).logits
    run = tiny.run(tokens, capture=tiny.sites())
    assert set(run.sites) == set(tiny.sites())
    assert (run.logits - plain).abs().max() <= 1e-5
    assert all(torch.isfinite(tensor).all() for tensor in run.sites.values())


def test_shapes_are_those_documented(tiny, tokens):
    run = tiny.run(tokens, capture=tiny.sites(), logits=False)
    batch, pos = tokens.shape
    d, heads, kv, width = tiny.d_model, tiny.n_heads, tiny.n_kv_heads, tiny.d_head
    shapes = {
        "attn.q": (heads, width), "attn.k": (kv, width), "attn.v": (kv, width),
        "attn.z": (heads * width,), "mlp.mid": (tiny.d_mlp,), "attn.out": (d,), "mlp.in": (d,),
        "mlp.out": (d,), "attn.in": (d,), "resid_pre": (d,), "resid_post": (d,),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert run.sites[f"blocks.0.{name}"].shape == (batch, pos, *shape), name
    assert run.sites["blocks.0.attn.pattern"].shape == (batch, heads, pos, pos)


def test_residual_stream_adds_up(tiny, tokens):
    if tiny.family.startswith("gemma"):
        pytest.skip("what Gemma's parts return passes one more norm before it is added")
    names = ["resid_pre", "attn.out", "mlp.out", "resid_post"]
    sites = tiny.run(tokens, capture=[f"blocks.0.{n}" for n in names], logits=False).sites
    before, attn, mlp, after = (sites[f"blocks.0.{n}"] for n in names)
    torch.testing.assert_close(before + attn + mlp, after)


def test_transformer_lens_names_are_aliases(llama, tokens):
    names = {
        "hook_embed": "embed", "blocks.1.hook_resid_mid": "blocks.1.resid_mid",
        "blocks.1.attn.hook_z": "blocks.1.attn.z", "blocks.0.hook_mlp_out": "blocks.0.mlp.out",
        "blocks.0.attn.hook_pattern": "blocks.0.attn.pattern",
        "blocks.0.mlp.hook_post": "blocks.0.mlp.mid",
    }  # fmt: skip
    run = llama.run(tokens, capture=[*names, *names.values()])
    for alias, site in names.items():
        assert canonical(alias) == site
        assert torch.equal(run.sites[alias], run.sites[site])


def test_module_paths_are_sites_too(llama, tokens):
    seen = spied(llama.model, tokens)
    paths = ["model.layers.1.mlp", "model.layers.1.mlp:in", "model.layers.0.self_attn"]
    run = llama.run(tokens, capture=paths, logits=False)
    assert torch.equal(run.sites[paths[0]], seen["model.layers.1.mlp"][1])
    assert torch.equal(run.sites[paths[1]], seen["model.layers.1.mlp"][0])
    assert torch.equal(run.sites[paths[2]], seen["model.layers.0.self_attn"][1])


def test_a_plain_module_works_by_paths():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    subject = wrap_module(net, name="net")
    x = torch.randn(5, 4)
    hidden = torch.relu(net[0](x))
    run = subject.run(x, capture=["1", "2:in"])
    assert torch.equal(run.sites["1"], hidden)
    assert torch.equal(run.sites["2:in"], hidden)
    assert torch.equal(run.logits, net[2](hidden))
    zeroed = subject.run(x, replace={"1": torch.zeros(8)})
    assert torch.equal(zeroed.logits, net[2].bias.expand(5, 3))
    with pytest.raises(UserError, match=r"no row of the table.*such as 0, 1, 2 \(its output\)"):
        subject.run(x, capture=["blocks.0.mlp.out"])
    with pytest.raises(UserError, match="register_family"):
        _ = subject.n_layers


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("blocks.1.mlp.ot", "nearest: blocks.1.mlp.out"),
        ("blocks.7.mlp.out", "its blocks are 0 to 1"),
        ("nonsense", "no site nonsense"),
        ("blocks.0.mlp.out:in", "no site"),
    ],
)
def test_unknown_sites_name_near_ones(llama, tokens, site, says):
    with pytest.raises(UserError, match=says):
        llama.run(tokens, capture=[site])


def test_parallel_residual_has_no_middle(tokens):
    from conftest import tiny_model

    subject = wrap_module(tiny_model("gpt-neox"), name="neox")
    assert "blocks.0.resid_mid" not in subject.sites()
    with pytest.raises(UserError, match=r"resid_mid does not exist in it.*attn\.out and mlp\.out"):
        subject.run(tokens, capture=["blocks.0.resid_mid"])
