"""Gated attention blocks: heads set by hand, shut and open gates, unit norms, files."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows
from torch import Tensor

from unweave.dictionaries.attention.gated_block import GatedBlock, GatedBlockSpec, gated_block_for
from unweave.errors import UserError

SPEC = GatedBlockSpec(d_model=6, n_heads=3, d_head=2, context=9)


def random_block(seed: int = 0, **changes: object) -> GatedBlock:
    block = GatedBlock(SPEC.model_copy(update=changes))
    block.start_(torch.Generator().manual_seed(seed))
    return block


def random_x(rows: int = 2, pos: int = 9, width: int = 6) -> Tensor:
    return torch.randn(rows, pos, width, generator=torch.Generator().manual_seed(7))


def test_what_reads_and_writes_has_unit_norm_whatever_the_weights_are():
    block, x = random_block(), random_x()
    W_V, W_O = block.directions()
    assert torch.allclose(W_V.norm(dim=1), torch.ones(3, 2))
    assert torch.allclose(W_O.norm(dim=2), torch.ones(3, 2))
    wanted = block(x)
    with torch.no_grad():
        block.W_V.mul_(3.0)
        block.W_O.mul_(0.2)
    assert torch.allclose(block(x), wanted, atol=1e-5)


def test_shut_gates_write_nothing_and_open_ones_are_plain_attention():
    block, x = random_block(), random_x()
    with torch.no_grad():
        for gate in (block.W_gate_Q, block.W_gate_K, block.b_gate_Q, block.b_gate_K):
            gate.zero_()
    assert not block(x).any()
    block.open_gates_()
    passed = block.watch(x)
    assert torch.equal(passed.gate, torch.ones_like(passed.gate))
    assert torch.allclose(passed.pattern.sum(-1), torch.ones(2, 3, 9))
    by_hand = torch.zeros(2, 9, 6)
    W_V, W_O = block.directions()
    for head in range(3):
        q, k = x @ block.W_Q[head] + block.b_Q[head], x @ block.W_K[head] + block.b_K[head]
        v = x @ W_V[head] + block.b_V[head]
        scores = (q @ k.transpose(1, 2) / 2**0.5).masked_fill(
            torch.ones(9, 9).triu(1).bool(), -torch.inf
        )
        by_hand += scores.softmax(-1) @ v @ W_O[head]
    assert torch.allclose(passed.output, by_hand, atol=1e-5)


def test_a_gate_is_a_product_of_two_numbers_between_shut_and_open():
    block, x = random_block(), random_x() * 3
    gate = block.gates(x)
    assert gate.min() == 0
    assert gate.max() == 1
    inside = (gate > 0) & (gate < 1)
    query = x @ block.W_gate_Q.T + block.b_gate_Q
    key = x @ block.W_gate_K.T + block.b_gate_K
    product = torch.einsum("bqh,bkh->bhqk", query, key)
    assert inside.any()
    assert torch.allclose(gate[inside], product[inside])
    # What is shut is not handed on: rows of the pattern sum to less than one.
    assert block.watch(x).pattern.sum(-1).min() < 0.9


def test_heads_add_up_and_no_place_sees_what_comes_later():
    block, x = random_block(scale=2.5), random_x()
    assert torch.allclose(block.by_head(x).sum(2), block(x), atol=1e-5)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.allclose(block(other)[:, :5], block(x)[:, :5])
    assert not torch.allclose(block(other)[:, 5:], block(x)[:, 5:])


def test_patterns_are_the_subject_s_rotary_positions_included():
    subject, rows = tiny_llama(), tiny_rows(3, 12)
    block = gated_block_for(subject, 1, seed=0, expansion=1, scale=1.0)
    weights = subject.attention_weights(1)
    block.open_gates_()
    with torch.no_grad():
        block.W_Q.copy_(weights.W_Q)
        block.W_K.copy_(weights.W_K)
        block.b_Q.zero_()
        block.b_K.zero_()
    sites = ["blocks.1.attn.in", "blocks.1.attn.pattern"]
    found = subject.run(rows, capture=sites, logits=False).sites
    assert torch.allclose(block.watch(found[sites[0]]).pattern, found[sites[1]], atol=1e-5)
    block.cos.fill_(1.0)
    block.sin.zero_()
    assert not torch.allclose(block.watch(found[sites[0]]).pattern, found[sites[1]], atol=1e-2)


def test_it_comes_back_from_its_files_and_refuses_what_is_none(tmp_path):
    block, x = random_block(seed=3), random_x()
    block.save(tmp_path / "block")
    assert torch.equal(GatedBlock.load(tmp_path / "block")(x), block(x))
    (tmp_path / "block" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        GatedBlock.load(tmp_path / "block")
    with pytest.raises(UserError, match="blocks 0 to 1, not 7"):
        gated_block_for(tiny_llama(), 7, seed=0)
    with pytest.raises(UserError, match="rows of 64 tokens"):
        gated_block_for(tiny_llama(), 0, seed=0, context=65)


def test_gates_start_as_open_as_they_are_told_to():
    for opening in (0.0, 0.5):
        block = random_block()
        block.start_(torch.Generator().manual_seed(0), opening=opening)
        assert torch.allclose(block.gates(torch.zeros(1, 2, 6)), torch.tensor(opening))
        shut = (block.gates(random_x() * 0.3) == 0).float().mean()
        assert shut < 0.05 if opening else shut > 0.3
