"""What a subject says of its attention, norms, positions and logits is what its modules compute."""

import dataclasses

import pytest
import torch
from tiny_subject import FAMILIES, family_subject

from unweave.subject.attending import attending, logit_cap


def normed(x, gain, eps):
    if gain is None:
        return x
    return x * gain / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def turned(x, rule):
    """Heads' vectors as points of planes, turned one position after another."""
    if rule.theta is None:
        return x
    planes = len(rule.theta)
    low, high = x[..., :planes], x[..., planes : 2 * planes]
    angle = torch.arange(x.shape[1])[:, None, None] * rule.theta
    cos, sin = angle.cos() * rule.stretch, angle.sin() * rule.stretch
    both = [low * cos - high * sin, high * cos + low * sin, x[..., 2 * planes :]]
    return torch.cat(both, -1)


def pattern_of(q, k, rule):
    k = k.repeat_interleave(q.shape[2] // k.shape[2], 2)
    q, k = normed(q, rule.q_gain, rule.head_eps), normed(k, rule.k_gain, rule.head_eps)
    raw = torch.einsum("bthd,bshd->bhts", turned(q, rule), turned(k, rule)) * rule.scale
    if rule.cap is not None:
        raw = (raw / rule.cap).tanh() * rule.cap
    return rule.mask(raw, 0).softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_attends_as_it_says(family, tokens):
    subject = family_subject(family)
    for layer in range(2):
        sites = [f"blocks.{layer}.attn.{part}" for part in ("q", "k", "pattern")]
        q, k, true = (subject.run(tokens, capture=sites, logits=False).sites[s] for s in sites)
        rule = attending(subject, layer)
        torch.testing.assert_close(pattern_of(q, k, rule), true, atol=1e-5, rtol=1e-4)
        # The test can fail: each thing that a layer has is needed.
        for without in ({"window": None}, {"theta": None}, {"q_gain": None}):
            if getattr(rule, *without) is not None:
                other = pattern_of(q, k, dataclasses.replace(rule, **without))
                assert (other - true).abs().max() > 1e-4, without


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_norms_and_logits_are_those_of_the_modules(family, tokens):
    subject = family_subject(family)
    sites = ["embed", "blocks.0.resid_pre", "blocks.1.resid_post", "blocks.0.attn.in"]
    run = subject.run(tokens, capture=sites)
    embed, first, last, read = (run.sites[site] for site in sites)
    positions = subject.positions()
    assert (positions is not None) == (family in ("gpt2", "gpt-neo"))
    total = embed if positions is None else embed + positions[: tokens.shape[1]]
    torch.testing.assert_close(first, total)

    def norm(x):
        x = x - x.mean(-1, keepdim=True) if subject.norms_centre else x
        return x / (x.square().mean(-1, keepdim=True) + subject.norm_eps).sqrt()

    bias = subject.norm_bias(0, "attn")
    assert (bias is not None) == subject.norms_centre
    found = norm(first) * subject.norm_gain(0, "attn") + (0 if bias is None else bias)
    torch.testing.assert_close(found, read, atol=1e-5, rtol=1e-4)
    logits, cap = norm(last) @ subject.unembed().T + subject.unembed_bias(), logit_cap(subject)
    logits = logits if cap is None else (logits / cap).tanh() * cap
    torch.testing.assert_close(logits, run.logits, atol=1e-4, rtol=1e-4)
    assert subject.norms_writes == family.startswith("gemma")
