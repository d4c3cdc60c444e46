"""Stand-ins for queries and keys, in projections of their own and in fused ones."""

import pytest
import torch
from torch import nn

from unweave.subject import continue_rows


class Exact(nn.Module):
    """Queries or keys by the subject's own weights, heads side by side."""

    def __init__(self, subject, part):
        super().__init__()
        layer, kind = part[1:].split(".")
        weights = subject.attention_weights(int(layer))
        groups = 1 if kind == "q" else subject.n_heads // subject.n_kv_heads
        matrix, bias = (weights.W_Q, weights.b_Q) if kind == "q" else (weights.W_K, weights.b_K)
        self.weight = nn.Parameter(matrix[::groups].movedim(0, 1).flatten(1).clone())
        self.bias = 0 if bias is None else bias[::groups].flatten()

    def forward(self, x):
        return x @ self.weight + self.bias


PARTS = ["L0.q", "L0.k", "L1.q", "L1.k"]


def test_the_subjects_own_queries_and_keys_change_nothing(tiny, tokens):
    plain = tiny.run(tokens).logits
    with tiny.swapped({part: Exact(tiny, part) for part in PARTS}):
        torch.testing.assert_close(tiny.run(tokens).logits, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny.run(tokens).logits, plain)


def test_a_stand_in_reads_and_writes_its_sites_and_leaves_the_others_alone(tiny, tokens):
    others = ["blocks.0.attn.q", "blocks.0.attn.k", "blocks.0.attn.v"]
    before = tiny.run(tokens, capture=others).sites
    for part in ("L0.q", "L0.k"):
        write = f"blocks.0.attn.{part[-1]}"
        linear = nn.Linear(tiny.d_model, before[write].flatten(-2).shape[-1])
        with tiny.swapped({part: linear}), torch.no_grad():
            run = tiny.run(tokens, capture=["blocks.0.attn.in", *others])
        want = linear(run.sites["blocks.0.attn.in"]).view_as(run.sites[write])
        assert torch.equal(run.sites[write], want)
        for other in set(others) - {write}:
            assert torch.equal(run.sites[other], before[other])
        replaced = tiny.run(tokens, replace={write: run.sites[write]})
        torch.testing.assert_close(run.logits, replaced.logits)


def test_gradients_reach_queries_and_keys(tiny, tokens):
    parts = {part: Exact(tiny, part) for part in PARTS}
    with tiny.swapped(parts):
        tiny.run(tokens).logits.pow(2).sum().backward()
    assert all(part.weight.grad.abs().sum() > 0 for part in parts.values())


def test_cached_writing_equals_writing_without_a_cache(tiny, tokens):
    parts = {part: Exact(tiny, part) for part in PARTS}
    with torch.no_grad():
        for part in parts.values():
            part.weight.mul_(1.5)
    prompts = tokens[:, :5]
    with tiny.swapped(parts):
        written = continue_rows(tiny, prompts, 6)
        row = prompts
        for _ in range(6):
            row = torch.cat([row, tiny.run(row).logits[:, -1:].argmax(-1)], dim=1)
    assert written == row[:, 5:].tolist()


@pytest.mark.parametrize("order", [["L0.q", "L0.k"], ["L0.k", "L0.q"]])
def test_the_originals_return(tiny, order):
    paths = {tiny.place(f"blocks.0.attn.{kind}").module for kind in "qkv"}
    before = {path: tiny.model.get_submodule(path) for path in paths}
    with tiny.swapped({part: nn.Identity() for part in order}):
        assert tiny.changed
    assert not tiny.changed
    assert all(tiny.model.get_submodule(path) is module for path, module in before.items())
