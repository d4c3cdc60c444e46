"""Weights by table give what the modules compute."""

import torch
from torch.nn.functional import gelu, silu

ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_new": lambda x: gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: gelu(x, approximate="tanh"),
}


def plus(x, bias):
    return x if bias is None else x + bias


def test_mlp_weights_reproduce_the_mlp(tiny, tokens):
    for layer in range(2):
        names = [f"blocks.{layer}.mlp.{s}" for s in ("in", "mid", "out")]
        sites = tiny.run(tokens, capture=names, logits=False).sites
        x, mid, out = (sites[name] for name in names)
        w = tiny.mlp_weights(layer)
        assert w.W_in.shape == w.W_out.shape == (tiny.d_mlp, tiny.d_model)
        act = ACTIVATIONS[w.activation]
        found = plus(x @ w.W_in.T, w.b_in)
        gate = found if w.W_gate is None else plus(x @ w.W_gate.T, w.b_gate)
        found = act(gate) * (1 if w.W_gate is None else found)
        torch.testing.assert_close(found, mid, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plus(found @ w.W_out, w.b_out), out, atol=1e-5, rtol=1e-5)


def test_attention_weights_reproduce_projections_and_output(tiny, tokens):
    for layer in range(2):
        names = [f"blocks.{layer}.attn.{s}" for s in ("in", "q", "k", "v", "pattern", "z", "out")]
        sites = tiny.run(tokens, capture=names, logits=False).sites
        x, q, k, v, pattern, z, out = (sites[name] for name in names)
        w = tiny.attention_weights(layer)
        shape = (tiny.n_heads, tiny.d_model, tiny.d_head)
        assert w.W_Q.shape == w.W_K.shape == w.W_V.shape == shape
        groups = tiny.n_heads // tiny.n_kv_heads
        pairs = [
            (w.W_Q, w.b_Q, q),
            (w.W_K, w.b_K, k.repeat_interleave(groups, 2)),
            (w.W_V, w.b_V, v.repeat_interleave(groups, 2)),
        ]
        for weight, bias, vectors in pairs:
            found = plus(torch.einsum("bpd,hde->bphe", x, weight), bias)
            torch.testing.assert_close(found, vectors, atol=1e-5, rtol=1e-5)
        mixed = torch.einsum("bhqk,bkhe->bqhe", pattern, pairs[2][2])
        torch.testing.assert_close(mixed.flatten(-2), z, atol=1e-5, rtol=1e-5)
        found = plus(torch.einsum("bphe,hed->bpd", mixed, w.W_O), w.b_O)
        torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-5)


def test_norm_gain_is_what_the_norm_multiplies_by(tiny, tokens):
    pairs = [("attn", "resid_pre", "attn.in")]
    if tiny.name != "gpt-neox":
        pairs.append(("mlp", "resid_mid", "mlp.in"))
    for which, before, after in pairs:
        names = [f"blocks.1.{before}", f"blocks.1.{after}"]
        sites = tiny.run(tokens, capture=names, logits=False).sites
        stream, normed = (sites[name] for name in names)
        gain = tiny.norm_gain(1, which)
        place = tiny.model.get_submodule(tiny.place(names[1]).module)
        bias = getattr(place, "bias", None)
        if bias is not None:
            stream = stream - stream.mean(-1, keepdim=True)
            normed = normed - bias
        scale = stream.pow(2).mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(normed, gain * stream / scale, atol=1e-3, rtol=1e-3)


def test_unembed_has_the_final_gain_folded_in(tiny, tokens):
    last = f"blocks.{tiny.n_layers - 1}.resid_post"
    run = tiny.run(tokens, capture=[last])
    stream, logits = run.sites[last], run.logits
    norm = tiny.model.get_submodule(tiny.place("final").module)
    head = tiny.model.get_submodule("lm_head")
    bias = getattr(norm, "bias", None)
    if bias is not None:
        stream = stream - stream.mean(-1, keepdim=True)
        logits = logits - head(bias)
    cap = getattr(tiny.model.config, "final_logit_softcapping", None)
    if cap:
        logits = torch.atanh(logits / cap) * cap
    scale = stream.pow(2).mean(-1, keepdim=True).sqrt()
    found = (stream / scale) @ tiny.unembed().T
    torch.testing.assert_close(found, logits, atol=2e-3, rtol=2e-3)


def test_embed_rows_are_what_tokens_put_on_the_stream(tiny, tokens):
    stream = tiny.run(tokens, capture=["embed"], logits=False).sites["embed"]
    assert torch.equal(tiny.embed()[tokens], stream)
    assert tiny.embed().shape == (tiny.vocab_size, tiny.d_model)
