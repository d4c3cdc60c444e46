"""Replacing, stopping early, gradients, and leaving nothing behind."""

import pytest
import torch
from torch import nn

from unweave.errors import UserError


def changed(subject, tokens, site, value):
    """Largest change of the logits when a site is replaced."""
    plain = subject.run(tokens).logits
    return (subject.run(tokens, replace={site: value}).logits - plain).abs().max()


def test_replacing_a_site_by_itself_changes_nothing(tiny, tokens):
    run = tiny.run(tokens, capture=tiny.sites())
    for site in tiny.sites():
        assert changed(tiny, tokens, site, run.sites[site]) <= 1e-5, site
        assert changed(tiny, tokens, site, lambda x: x) <= 1e-5, site


def test_replacing_any_site_reaches_the_logits(tiny, tokens):
    for site in tiny.sites():
        assert changed(tiny, tokens, site, lambda x: x * 1.5 + 0.1 * x.roll(1, 0)) > 1e-4, site


def test_a_site_replaced_and_captured_gives_the_replacement(tiny, tokens):
    for site in tiny.sites():
        run = tiny.run(tokens, capture=[site], replace={site: lambda x: 2 * x})
        plain = tiny.run(tokens, capture=[site]).sites[site]
        torch.testing.assert_close(run.sites[site], 2 * plain, msg=site)


def test_a_replaced_middle_is_what_the_stream_goes_on_with(tiny, tokens):
    if tiny.name == "gpt-neox":
        pytest.skip("no middle: attention and MLP in parallel")
    value = torch.randn(*tokens.shape, tiny.d_model)
    sites = ["blocks.0.mlp.in", "blocks.0.mlp.out", "blocks.0.resid_post"]
    run = tiny.run(tokens, capture=sites, replace={"blocks.0.resid_mid": value}, logits=False)
    normed, out, after = (run.sites[site] for site in sites)
    norm = {"gemma2": "pre_feedforward_layernorm", "gemma3": "pre_feedforward_layernorm"}
    block = tiny.model.get_submodule(tiny.place("blocks.0.resid_post").module)
    names = ("post_attention_layernorm", "ln_2")
    name = norm.get(tiny.family) or next(n for n in names if hasattr(block, n))
    torch.testing.assert_close(normed, getattr(block, name)(value))
    if tiny.family.startswith("gemma"):
        out = block.post_feedforward_layernorm(out)
    torch.testing.assert_close(after, value + out)


def test_queries_are_replaced_one_by_one_in_fused_projections(tiny, tokens):
    sites = [f"blocks.0.attn.{s}" for s in "qkv"]
    plain = tiny.run(tokens, capture=sites, logits=False).sites
    run = tiny.run(tokens, capture=sites, replace={sites[1]: lambda k: -k}, logits=False).sites
    assert torch.equal(run[sites[0]], plain[sites[0]])
    assert torch.equal(run[sites[1]], -plain[sites[1]])
    assert torch.equal(run[sites[2]], plain[sites[2]])


def test_patterns_are_distributions_over_the_past(tiny, tokens):
    names = [f"blocks.{i}.attn.pattern" for i in range(2)]
    for pattern in tiny.run(tokens, capture=names, logits=False).sites.values():
        torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
        assert (pattern.triu(1) == 0).all()


def test_a_uniform_pattern_averages_the_values(tiny, tokens):
    pos = tokens.shape[1]
    uniform = torch.ones(pos, pos).tril() / torch.arange(1, pos + 1)[:, None]
    run = tiny.run(
        tokens,
        capture=["blocks.1.attn.v", "blocks.1.attn.z"],
        replace={"blocks.1.attn.pattern": uniform},
    )
    values = run.sites["blocks.1.attn.v"]
    values = values.repeat_interleave(tiny.n_heads // values.shape[2], dim=2)
    expected = torch.einsum("qk,bkhd->bqhd", uniform, values).flatten(-2)
    torch.testing.assert_close(run.sites["blocks.1.attn.z"], expected)


def test_the_fast_kernel_stays_unless_a_pattern_is_asked_for(llama, tokens):
    before = llama.model.config._attn_implementation
    seen = []
    handle = llama.model.model.layers[0].register_forward_hook(
        lambda *_: seen.append(llama.model.config._attn_implementation)
    )
    llama.run(tokens, capture=["blocks.0.attn.q", "blocks.0.attn.z"])
    llama.run(tokens, capture=["blocks.0.attn.pattern"])
    handle.remove()
    assert seen == ["sdpa", "unweave_pattern"]
    assert llama.model.config._attn_implementation == before == "sdpa"


def test_the_pass_ends_after_the_deepest_site(tiny, tokens):
    called = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, path=path: called.append(path))
        for path, module in tiny.model.named_modules()
    ]
    run = tiny.run(tokens, capture=["embed", "blocks.0.mlp.out"], logits=False)
    for handle in handles:
        handle.remove()
    assert run.logits is None
    assert set(run.sites) == {"embed", "blocks.0.mlp.out"}
    first, second = (tiny.place(f"blocks.{i}.resid_post").module for i in range(2))
    assert first in called
    assert second not in called
    assert tiny.place("final").module not in called


def test_gradients_flow_through_replaced_sites(tiny, tokens):
    for site in ("blocks.0.mlp.out", "blocks.0.attn.z", "blocks.1.attn.pattern", "blocks.0.attn.k"):
        value = tiny.run(tokens, capture=[site], logits=False).sites[site].clone()
        value.requires_grad_(True)
        loss = tiny.run(tokens, replace={site: value}).logits.double().pow(2).sum()
        (gradient,) = torch.autograd.grad(loss, value)
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(2))
        step = 1e-3
        losses = [
            tiny.run(tokens, replace={site: value.detach() + s * direction})
            .logits.double().pow(2).sum()
            for s in (step, -step)
        ]  # fmt: skip
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close(
            (gradient * direction).sum().double(), slope, rtol=2e-2, atol=0.5, msg=site
        )


def test_gradients_flow_through_a_function_at_the_middle(llama, tokens):
    scale = torch.ones(llama.d_model, requires_grad=True)
    run = llama.run(tokens, replace={"blocks.0.resid_mid": lambda x: x * scale})
    run.logits.sum().backward()
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0


def test_inference_mode_gives_the_same(tiny, tokens):
    sites = tiny.sites()
    plain = tiny.run(tokens, capture=sites, replace={"blocks.0.mlp.out": lambda x: x / 2})
    with torch.inference_mode():
        run = tiny.run(tokens, capture=sites, replace={"blocks.0.mlp.out": lambda x: x / 2})
    assert torch.equal(run.logits, plain.logits)
    assert all(torch.equal(run.sites[site], plain.sites[site]) for site in sites)
    assert run.logits.is_inference()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_after_exceptions_and_early_stops(tiny, tokens):
    tiny.run(tokens)
    before, attention = hooks(tiny.model), tiny.model.config._attn_implementation

    def fail(tensor):
        raise ZeroDivisionError

    for site in ("embed", "blocks.1.mlp.out", "blocks.0.attn.pattern", "blocks.1.resid_pre"):
        with pytest.raises(ZeroDivisionError):
            tiny.run(tokens, capture=tiny.sites(), replace={site: fail})
        tiny.run(tokens, capture=[site], logits=False)
        assert hooks(tiny.model) == before
        assert tiny.model.config._attn_implementation == attention


def test_captured_tensors_are_not_copies(llama, tokens):
    kept = []
    handle = llama.model.model.layers[0].mlp.register_forward_hook(lambda m, a, o: kept.append(o))
    run = llama.run(tokens, capture=["blocks.0.mlp.out"])
    handle.remove()
    assert run.sites["blocks.0.mlp.out"].data_ptr() == kept[0].data_ptr()


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (torch.tensor([[3, 97]]), "outside the vocabulary"),
        (torch.tensor([[3, -1]]), "outside the vocabulary"),
        (torch.full((1, 65), 3), "longer than the context"),
        (torch.tensor([3, 4]), r"token ids \[batch, pos\]"),
        (torch.zeros(1, 4), r"token ids \[batch, pos\]"),
        (torch.zeros(0, 4, dtype=torch.long), r"token ids \[batch, pos\]"),
    ],
)
def test_tokens_that_cannot_be_run_are_refused(llama, tokens, says):
    with pytest.raises(UserError, match=says):
        llama.run(tokens)


def test_a_replacement_that_does_not_fit_is_refused(llama, tokens):
    with pytest.raises(UserError, match=r"replacement for blocks.0.mlp.out is \(7,\) where"):
        llama.run(tokens, replace={"blocks.0.mlp.out": torch.zeros(7)})
    with pytest.raises(UserError, match="is NoneType where"):
        llama.run(tokens, replace={"embed": lambda x: None})


def test_what_is_shown_is_what_would_be_captured(tiny, tokens):
    seen = {}
    show = {site: (lambda x, s=site: seen.setdefault(s, x.clone())) for site in tiny.sites()}
    run = tiny.run(tokens, capture=tiny.sites())
    shown = tiny.run(tokens, show=show)
    assert shown.sites == {}
    assert torch.equal(shown.logits, run.logits)
    assert set(seen) == set(tiny.sites())
    for site, tensor in seen.items():
        assert torch.equal(tensor, run.sites[site]), site


def test_a_site_replaced_and_shown_shows_the_replacement_and_ends_the_pass(tiny, tokens):
    site, seen, later = "blocks.0.mlp.out", [], []
    block = tiny.model.get_submodule(tiny.place("blocks.1.resid_post").module)
    hook = block.register_forward_pre_hook(lambda *_: later.append(1))
    try:
        tiny.run(tokens, replace={site: lambda x: x * 3}, show={site: seen.append}, logits=False)
    finally:
        hook.remove()
    torch.testing.assert_close(seen[0], 3 * tiny.run(tokens, capture=[site]).sites[site])
    assert not later
