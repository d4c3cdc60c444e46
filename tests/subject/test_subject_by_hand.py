"""Every site of Llama and GPT-2 against a forward pass written out by hand."""

import math

import torch
from conftest import tiny_model

from unweave.subject import wrap_module


def causal(scores):
    pos = scores.shape[-1]
    return scores.masked_fill(torch.ones(pos, pos).triu(1).bool(), -math.inf)


def rms(x, gain, eps):
    return gain * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x, theta=10000.0):
    """Rotary embedding of [batch, pos, heads, d_head], halves paired."""
    pos, half = x.shape[1], x.shape[-1] // 2
    angle = torch.arange(pos)[:, None] / theta ** (torch.arange(half) / half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def attend(q, k, v, sites, name):
    """Attention of [batch, pos, heads, d_head] with as many key as query heads."""
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    pattern = causal(scores).softmax(-1)
    sites[f"{name}.attn.pattern"] = pattern
    z = torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(-2)
    sites[f"{name}.attn.z"] = z
    return z


def llama_by_hand(w, tokens, heads=4, kv=2, eps=1e-6):
    sites = {}
    x = sites["embed"] = w["model.embed_tokens.weight"][tokens]
    for i in range(2):
        b, n = f"model.layers.{i}", f"blocks.{i}"
        sites[f"{n}.resid_pre"] = x
        h = sites[f"{n}.attn.in"] = rms(x, w[f"{b}.input_layernorm.weight"], eps)
        for s, count in (("q", heads), ("k", kv), ("v", kv)):
            out = h @ w[f"{b}.self_attn.{s}_proj.weight"].T
            sites[f"{n}.attn.{s}"] = out.unflatten(-1, (count, -1))
        q, k, v = (sites[f"{n}.attn.{s}"] for s in "qkv")
        k, v = (t.repeat_interleave(heads // kv, 2) for t in (k, v))
        z = attend(rotate(q), rotate(k), v, sites, n)
        sites[f"{n}.attn.out"] = z @ w[f"{b}.self_attn.o_proj.weight"].T
        x = sites[f"{n}.resid_mid"] = x + sites[f"{n}.attn.out"]
        h = sites[f"{n}.mlp.in"] = rms(x, w[f"{b}.post_attention_layernorm.weight"], eps)
        gate = h @ w[f"{b}.mlp.gate_proj.weight"].T
        mid = gate * gate.sigmoid() * (h @ w[f"{b}.mlp.up_proj.weight"].T)
        sites[f"{n}.mlp.mid"] = mid
        sites[f"{n}.mlp.out"] = mid @ w[f"{b}.mlp.down_proj.weight"].T
        x = sites[f"{n}.resid_post"] = x + sites[f"{n}.mlp.out"]
    sites["final"] = rms(x, w["model.norm.weight"], eps)
    sites["logits"] = sites["final"] @ w["lm_head.weight"].T
    return sites


def layer_norm(x, w, name, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def affine(x, w, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # Conv1D stores [in, out]


def gpt2_by_hand(w, tokens, heads=4):
    sites = {}
    sites["embed"] = w["transformer.wte.weight"][tokens]
    x = sites["embed"] + w["transformer.wpe.weight"][: tokens.shape[1]]
    for i in range(2):
        b, n = f"transformer.h.{i}", f"blocks.{i}"
        sites[f"{n}.resid_pre"] = x
        h = sites[f"{n}.attn.in"] = layer_norm(x, w, f"{b}.ln_1")
        for s, out in zip("qkv", affine(h, w, f"{b}.attn.c_attn").chunk(3, -1), strict=True):
            sites[f"{n}.attn.{s}"] = out.unflatten(-1, (heads, -1))
        z = attend(*(sites[f"{n}.attn.{s}"] for s in "qkv"), sites, n)
        sites[f"{n}.attn.out"] = affine(z, w, f"{b}.attn.c_proj")
        x = sites[f"{n}.resid_mid"] = x + sites[f"{n}.attn.out"]
        h = sites[f"{n}.mlp.in"] = layer_norm(x, w, f"{b}.ln_2")
        u = affine(h, w, f"{b}.mlp.c_fc")
        mid = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        sites[f"{n}.mlp.mid"] = mid
        sites[f"{n}.mlp.out"] = affine(mid, w, f"{b}.mlp.c_proj")
        x = sites[f"{n}.resid_post"] = x + sites[f"{n}.mlp.out"]
    sites["final"] = layer_norm(x, w, "transformer.ln_f")
    sites["logits"] = sites["final"] @ w["lm_head.weight"].T
    return sites


def check(family, by_hand, tokens):
    subject = wrap_module(tiny_model(family), name=family)
    expected = by_hand(subject.model.state_dict(), tokens)
    found = subject.run(tokens, capture=subject.sites()).sites
    assert set(expected) == set(found)
    for site in subject.sites():
        torch.testing.assert_close(found[site], expected[site], atol=2e-5, rtol=2e-5, msg=site)


def test_llama(tokens):
    check("llama", llama_by_hand, tokens)


def test_gpt2(tokens):
    check("gpt2", gpt2_by_hand, tokens)
