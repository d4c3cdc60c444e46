"""Parts really take the place of modules, also while the network writes."""

import pytest
import torch
from torch import nn

from unweave.errors import UserError
from unweave.subject import continue_rows


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, x):
        return self.value.expand(*x.shape[:-1], -1)


def original(subject, part):
    layer, kind = part[1:].split(".")
    site = f"blocks.{layer}.{'mlp.out' if kind == 'mlp' else 'attn.out'}"
    return subject.model.get_submodule(subject.place(site).module)


PARTS = ["L0.mlp", "L0.attn", "L1.mlp", "L1.attn"]


def test_wrapping_the_originals_changes_nothing(tiny, tokens):
    plain = tiny.run(tokens).logits
    parts = {part: Wrapped(original(tiny, part)) for part in PARTS}
    with tiny.swapped(parts):
        assert torch.equal(tiny.run(tokens).logits, plain)
    assert all(part.calls == 1 for part in parts.values())
    assert torch.equal(tiny.run(tokens).logits, plain)


def test_a_swapped_part_reads_and_writes_its_sites(tiny, tokens):
    for part in PARTS:
        layer, kind = part[1:].split(".")
        read, write = ("mlp.in", "mlp.out") if kind == "mlp" else ("attn.z", "attn.out")
        read, write = f"blocks.{layer}.{read}", f"blocks.{layer}.{write}"
        width = tiny.d_model if kind == "mlp" else tiny.n_heads * tiny.d_head
        linear = nn.Linear(width, tiny.d_model)
        with tiny.swapped({part: linear}), torch.no_grad():
            run = tiny.run(tokens, capture=[read, write])
            assert torch.equal(run.sites[write], linear(run.sites[read]))
        replaced = tiny.run(tokens, replace={write: run.sites[write]})
        torch.testing.assert_close(run.logits, replaced.logits)


def test_the_original_is_not_computed(tiny, tokens):
    called = []
    mlp = original(tiny, "L0.mlp")
    handle = mlp.register_forward_hook(lambda *_: called.append(1))
    with tiny.swapped({"L0.mlp": Constant(torch.zeros(tiny.d_model))}):
        tiny.run(tokens)
        with pytest.raises(UserError, match=r"no blocks\.0\.mlp\.mid at the moment"):
            tiny.run(tokens, capture=["blocks.0.mlp.mid"])
    handle.remove()
    assert called == []


def test_gradients_reach_the_part(tiny, tokens):
    part = Constant(torch.zeros(tiny.d_model))
    with tiny.swapped({"L0.mlp": part}):
        tiny.run(tokens).logits.pow(2).sum().backward()
    assert part.value.grad is not None
    assert part.value.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny.model.parameters())


def test_the_originals_return_after_an_exception(tiny):
    modules = {part: original(tiny, part) for part in PARTS}
    parts = {part: nn.Identity() for part in PARTS}

    def swap_and_fail():
        with tiny.swapped(parts):
            assert tiny.changed
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        swap_and_fail()
    assert not tiny.changed
    assert all(original(tiny, part) is module for part, module in modules.items())


def test_swaps_nest(llama):
    inner, outer = nn.Identity(), nn.Identity()
    before = original(llama, "L0.mlp")
    with llama.swapped({"L0.mlp": outer}):
        with llama.swapped({"L0.mlp": inner}):
            assert original(llama, "L0.mlp") is inner
        assert original(llama, "L0.mlp") is outer
        assert llama.changed
    assert original(llama, "L0.mlp") is before


@pytest.mark.parametrize("part", ["L2.mlp", "L0.mlq", "mlp", ""])
def test_unknown_parts_are_refused(llama, part):
    with pytest.raises(UserError, match="has no part"), llama.swapped({part: nn.Identity()}):
        pass


def greedy(subject, prompts, new_tokens):
    """Greedy writing without a cache."""
    tokens = prompts
    for _ in range(new_tokens):
        tokens = torch.cat([tokens, subject.run(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[:, prompts.shape[1] :].tolist()


def test_cached_writing_equals_writing_without_a_cache(tiny, tokens):
    assert continue_rows(tiny, tokens[:, :5], 14) == greedy(tiny, tokens[:, :5], 14)


def test_the_swapped_network_writes(tiny, tokens):
    torch.manual_seed(3)
    parts = {
        "L0.mlp": nn.Linear(tiny.d_model, tiny.d_model),
        "L1.attn": nn.Linear(tiny.n_heads * tiny.d_head, tiny.d_model),
    }
    plain = continue_rows(tiny, tokens[:, :5], 14)
    with tiny.swapped(parts):
        written = continue_rows(tiny, tokens[:, :5], 14)
        assert written == greedy(tiny, tokens[:, :5], 14)
    assert written != plain


def test_sampling_is_seeded_and_has_the_right_distribution(llama):
    prompts = torch.full((4000, 1), 5)
    draws = [continue_rows(llama, prompts, 1, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    expected = (llama.run(prompts[:1]).logits[0, -1] / 2.0).softmax(-1)
    counts = torch.bincount(torch.tensor(draws[0]).flatten(), minlength=97) / 4000
    assert (counts - expected).abs().max() < 0.03
    assert (counts - expected).abs().sum() < 0.2


def test_a_row_ends_before_a_stop_token(llama, tokens):
    rows = continue_rows(llama, tokens, 20)
    stop = rows[0][3]
    cut = continue_rows(llama, tokens, 20, stop={stop})
    for row, short in zip(rows, cut, strict=True):
        assert short == (row[: row.index(stop)] if stop in row else row)


def test_writing_past_the_context_is_refused(llama, tokens):
    with pytest.raises(UserError, match="exceed the context of llama, 64"):
        continue_rows(llama, tokens, 60)
