"""Splice modes on networks where the right logits are known."""

import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows
from torch import nn

from unweave.decompile.modes import (
    clean_logits,
    input_site,
    original_logits,
    output_site,
    propagated_logits,
    single_logits,
)
from unweave.validate.baselines import ExactAttentionOutput, ExactMLP

NAMES = ["L0.attn", "L0.mlp", "L1.attn", "L1.mlp"]


def exact_blocks(subject):
    return {
        name: ExactMLP(subject.mlp_weights(int(name[1])))
        if name.endswith("mlp")
        else ExactAttentionOutput(subject.attention_weights(int(name[1])))
        for name in NAMES
    }


class Shifted(nn.Module):
    """A block with its output scaled: an inexact part."""

    def __init__(self, block, by):
        super().__init__()
        self.block, self.by = block, by

    def forward(self, x):
        return self.block(x) * self.by


def inexact(subject):
    return {name: Shifted(block, 0.7) for name, block in exact_blocks(subject).items()}


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def rows():
    return tiny_rows(3)


def test_exact_copies_change_nothing_in_any_mode(subject, rows):
    original, blocks = original_logits(subject, rows), exact_blocks(subject)
    assert torch.allclose(propagated_logits(subject, blocks, rows), original, atol=1e-4)
    assert torch.allclose(clean_logits(subject, blocks, rows), original, atol=1e-4)
    for _, logits in single_logits(subject, blocks, rows):
        assert torch.allclose(logits, original, atol=1e-4)


def test_single_with_earlier_blocks_held_equals_the_plain_single_splice(subject, rows):
    placed = inexact(subject)
    found = dict(single_logits(subject, placed, rows))
    assert list(found) == NAMES
    for name in NAMES:
        plain = propagated_logits(subject, {name: placed[name]}, rows)
        assert torch.allclose(found[name], plain, atol=1e-5)
        assert not torch.allclose(found[name], original_logits(subject, rows), atol=1e-3)


def test_clean_feeds_every_part_what_the_original_computed(subject, rows):
    placed = inexact(subject)
    sites = [input_site(name) for name in NAMES]
    with torch.inference_mode():
        inputs = subject.run(rows, capture=sites).sites
        replace = {output_site(n): placed[n](inputs[input_site(n)]) for n in NAMES}
        by_hand = subject.run(rows, replace=replace).logits
    clean = clean_logits(subject, placed, rows)
    assert torch.allclose(clean, by_hand, atol=1e-5)
    assert not torch.allclose(clean, propagated_logits(subject, placed, rows), atol=1e-3)


def test_the_subject_is_itself_again_after_a_splice(subject, rows):
    before = original_logits(subject, rows)
    propagated_logits(subject, inexact(subject), rows)
    assert torch.equal(original_logits(subject, rows), before)


def test_a_stand_in_that_fails_leaves_the_subject_whole(subject, rows):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    before = original_logits(subject, rows)
    with pytest.raises(RuntimeError, match="no"):
        propagated_logits(subject, {"L0.mlp": Fails()}, rows)
    assert torch.equal(original_logits(subject, rows), before)


def test_noise_in_a_block_shows_in_its_own_splice_only_from_there_on(subject, rows):
    block = bump(ExactMLP(subject.mlp_weights(1)))
    block.W_out = block.W_out + 1.0
    with subject.swapped({"L1.mlp": block}):
        run = subject.run(rows, capture=["blocks.1.resid_mid", "blocks.1.resid_post"])
    plain = subject.run(rows, capture=["blocks.1.resid_mid", "blocks.1.resid_post"])
    assert torch.equal(run.sites["blocks.1.resid_mid"], plain.sites["blocks.1.resid_mid"])
    assert not torch.allclose(run.sites["blocks.1.resid_post"], plain.sites["blocks.1.resid_post"])
