"""Gated blocks are trained to do what a block does, with few gates open."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.attention.gated_block import gated_block_for
from unweave.errors import UserError
from unweave.training.attention.gated import (
    GatedSettings,
    norm_over_heads,
    train_gated_blocks,
)
from unweave.training.attention.gated_batches import SubjectRows, TokenTables
from unweave.training.checkpoint import Checkpoints
from unweave.validate.worlds.skip_trigrams import (
    draw_trigrams,
    localised_network,
    trigram_subject,
)


def tokens_of(rows: int = 400):
    return draw_trigrams(3, rows, generator=torch.Generator().manual_seed(5)).tokens


def trained(steps: int, alpha: float, *, seeds: int = 1, checkpoints: Checkpoints | None = None):
    subject = trigram_subject(localised_network(3))
    blocks = [
        gated_block_for(subject, 0, seed=seed, expansion=1, scale=20.0) for seed in range(seeds)
    ]
    source = TokenTables([subject] * seeds, tokens_of(), drawn=16, steps=steps, seed=1)
    settings = GatedSettings(alpha=alpha, lr=0.02, beta2=0.99, log_every=steps - 1)
    log = train_gated_blocks(blocks, source, settings, checkpoints=checkpoints)
    return blocks, log


def test_the_norm_prefers_one_head_to_many():
    one = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    shared = torch.full((1, 3, 1, 1), 1 / 3)
    assert norm_over_heads(one, 0.6).item() == pytest.approx(1.0, abs=1e-2)
    assert norm_over_heads(shared, 0.6).item() == pytest.approx(3 ** (1 / 0.6 - 1), rel=1e-4)
    assert norm_over_heads(shared, 1.0).item() == pytest.approx(1.0, rel=1e-4)


def test_the_price_rises_where_it_is_told_to():
    rising = GatedSettings(alpha=0.4, rise=(0.2, 0.7))
    assert [rising.price(step, 100) for step in (0, 20, 45, 70, 99)] == pytest.approx(
        [0.0, 0.0, 0.2, 0.4, 0.4]
    )
    assert GatedSettings(alpha=0.4).price(0, 100) == 0.4


def test_tables_and_rows_are_the_same_loss():
    subject = trigram_subject(localised_network(3))
    block = gated_block_for(subject, 0, seed=2, scale=20.0)
    tokens = tokens_of(300)
    rows = SubjectRows([subject], tokens, layer=0, rows=1, steps=1, seed=0)
    rows._rows = len(tokens)
    x = torch.eye(8)[tokens][None]
    y = subject.run(tokens, capture=["blocks.0.attn.out"], logits=False).sites["blocks.0.attn.out"]
    whole = rows.at(0)._replace(x=x[0], y=y).loss(block, 0.6)
    table = TokenTables([subject], tokens, drawn=2_000, steps=1, seed=0).at(0)
    one = type(table)(*(part[0] for part in table)).loss(block, 0.6)
    assert one.gates.item() == pytest.approx(whole.gates.item(), rel=1e-4)
    # Places of the tables are drawn with replacement, so the error is an estimate.
    assert one.error.item() == pytest.approx(whole.error.item(), rel=0.05)


def test_it_learns_and_a_price_shuts_gates():
    _, free = trained(400, 0.0)
    blocks, priced = trained(400, 3.0)
    assert free[-1]["error"] < 0.3 * free[0]["error"]
    assert priced[-1]["gates"] < 0.5 * free[-1]["gates"]
    W_V, _ = blocks[0].directions()
    assert torch.allclose(W_V.norm(dim=1), torch.ones(3, 1))


def test_blocks_trained_together_are_those_trained_alone():
    both, _ = trained(40, 0.1, seeds=2)
    alone, _ = trained(40, 0.1)
    assert torch.allclose(both[0].W_Q, alone[0].W_Q, atol=1e-4)
    assert not torch.allclose(both[1].W_Q, alone[0].W_Q, atol=1e-2)


def test_a_cut_run_ends_in_the_same_bits(tmp_path):
    whole, log = trained(30, 0.1)

    class Cut(Exception):
        pass

    class CutAt(Checkpoints):
        def offer(self, done, metrics, state):
            super().offer(done, metrics, state)
            if done == 17:
                raise Cut

    with pytest.raises(Cut):
        trained(30, 0.1, checkpoints=CutAt(tmp_path / "kept", seconds=0.0))
    resumed, again = trained(30, 0.1, checkpoints=Checkpoints(tmp_path / "kept", seconds=0.0))
    assert torch.equal(resumed[0].W_O, whole[0].W_O)
    assert again == log


def test_a_real_block_is_trained_on_rows():
    subject, rows = tiny_llama(), tiny_rows(16, 12)
    blocks = [gated_block_for(subject, 1, seed=0, context=12)]
    source = SubjectRows([subject], rows, layer=1, rows=8, steps=60, seed=0)
    log = train_gated_blocks(blocks, source, GatedSettings(alpha=0.0, lr=0.02, log_every=59))
    assert log[-1]["error"] < 0.7 * log[0]["error"]
    with pytest.raises(UserError, match="Token 0 is in none"):
        TokenTables([subject], rows, drawn=2, steps=1, seed=0)
    every = torch.stack([torch.arange(64).roll(n) for n in range(9)]).view(-1, 32)
    with pytest.raises(UserError, match="more than the token"):
        TokenTables([subject], every, drawn=2, steps=1, seed=0, layer=1)
    with pytest.raises(UserError, match="one at least"):
        train_gated_blocks([], source)
