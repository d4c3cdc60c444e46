"""QK transcoders learn the features that a pattern depends on, and go on where they were cut."""

import math

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.attention.qk_block import QKBlock
from unweave.dictionaries.attention.qk_start import start_qk
from unweave.errors import UserError
from unweave.subject.scores import Scoring, pattern, scores
from unweave.training.attention.pattern_kl import log_pattern, pattern_kl, true_pattern
from unweave.training.attention.qk import QKSettings, QKTrainer, learn_qk
from unweave.training.attention.qk_loss import QKLossSettings, qk_loss
from unweave.training.checkpoint import Checkpoints

D_IN, HEADS, D_HEAD = 16, 2, 4
PLAIN = Scoring(scale=0.5, cos=None, sin=None, theta=None)


@pytest.fixture(scope="module")
def truth() -> tuple[QKBlock, Tensor, Tensor, Tensor]:
    """A block whose scores know two directions of what is asked and two of what is seen.

    Tokens that carry `asked[0]` look for `seen[0]` in head 0, and so on with 1; twelve other
    directions vary as much and have no say. Directions are on or off, independently.
    """
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=generator)).Q.T
    asked, seen = basis[:2], basis[2:4]
    W_Q, W_K = torch.zeros(HEADS, D_IN, D_HEAD), torch.zeros(HEADS, D_IN, D_HEAD)
    into = torch.linalg.qr(torch.randn(HEADS, D_HEAD, D_HEAD, generator=generator)).Q
    for head in range(HEADS):
        W_Q[head] = 3 * torch.outer(asked[head], into[head, 0])
        W_K[head] = 3 * torch.outer(seen[head], into[head, 0])
    on = (torch.rand(400, 12, D_IN, generator=generator) < 0.3).float()
    on[:, 0] = 0
    x = on * (0.5 + torch.rand(on.shape, generator=generator)) @ basis
    return QKBlock(W_Q, torch.zeros(2, 4), W_K, torch.zeros(2, 4), PLAIN), x, asked, seen


def begun(block, x, n=2, activation=None, seed=0):
    activation = activation or TopK(k=2)
    return start_qk(
        block, x, site="blocks.0.attn.in", n_queries=n, n_keys=n, query_activation=activation,
        seed=seed,
    )  # fmt: skip


def found_directions(transcoder, truth) -> float:
    """The worst cosine of a true direction with the encoder row nearest to it.

    Of either sign: that a direction is absent says as much as that it is there.
    """
    _, _, asked, seen = truth
    worst = 1.0
    for rows, directions in ((transcoder.W_enc_Q, asked), (transcoder.W_enc_K, seen)):
        unit = rows.detach() / rows.detach().norm(dim=1, keepdim=True)
        worst = min(worst, (directions @ unit.T).abs().amax(1).min().item())
    return worst


SHORT = QKSettings(steps=80, rows=16, lr=5e-2)


def test_two_features_each_find_the_two_directions_that_matter(truth):
    block, x, _, _ = truth
    # Begun at tokens of different kinds; two that begin at the same direction share it for good.
    transcoder = begun(block, x, activation=ReLU(), seed=0)
    learn_qk(transcoder, block, x[:350], seed=1, settings=SHORT)
    loss, _ = qk_loss(transcoder, block, x[350:], QKLossSettings())
    assert found_directions(transcoder, truth) > 0.98
    assert loss.both < 0.015


def test_a_block_with_mixed_up_keys_teaches_other_directions(truth):
    block, x, _, _ = truth
    mixed = QKBlock(block.W_Q, block.b_Q, block.W_K.roll(5, 1), block.b_K, PLAIN)
    transcoder = begun(mixed, x, activation=ReLU(), seed=0)
    learn_qk(transcoder, mixed, x[:350], seed=1, settings=SHORT.model_copy(update={"steps": 30}))
    loss, _ = qk_loss(transcoder, block, x[350:], QKLossSettings())
    assert found_directions(transcoder, truth) < 0.9
    assert loss.both > 0.1


def test_untrained_features_do_not_give_the_pattern(truth):
    block, x, _, _ = truth
    random = begun(block, x)
    with torch.no_grad():
        for parameter in random.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            )
    assert found_directions(random, truth) < 0.9
    assert qk_loss(random, block, x[350:], QKLossSettings())[0].both > 0.5


def test_kl_of_patterns_against_sums_by_hand():
    true = torch.tensor([[0.0, 9.0], [math.log(3.0), 0.0]])
    other = torch.tensor([[5.0, -2.0], [0.0, 0.0]], requires_grad=True)
    kl = pattern_kl(true_pattern(true), other)
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(kl, torch.tensor([0.0, by_hand]))
    kl.sum().backward()
    torch.testing.assert_close(other.grad, torch.tensor([[0.0, 0.0], [-0.25, 0.25]]))
    assert log_pattern(true)[0, 1] == -math.inf


def test_kl_is_that_of_autograd_in_double_precision():
    generator = torch.Generator().manual_seed(0)
    true, other = torch.randn(2, 2, 3, 5, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: pattern_kl(true_pattern(true), s), (other.requires_grad_(),)
    )


def test_terms_are_of_the_patterns_they_are_named_for(truth):
    block, x, _, _ = truth
    transcoder = begun(block, x, n=6, activation=ReLU())
    settings = QKLossSettings(penalty=2.0)
    loss, found = qk_loss(transcoder, block, x[:5], settings)
    q, k = block.queries(x[:5]), block.keys(x[:5])
    true = pattern(scores(q, k, PLAIN)).clamp_min(1e-30)
    for term, queries, keys in (
        (loss.both, found.q, found.k), (loss.keys, q, found.k), (loss.queries, found.q, k),
    ):  # fmt: skip
        other = pattern(scores(queries, keys, PLAIN)).clamp_min(1e-30)
        rows = (true * (true.log() - other.log())).sum(-1)[..., 1:]
        torch.testing.assert_close(term, rows.mean(), atol=1e-5, rtol=1e-4)
    roots = sum(
        (side.latents * transcoder.lengths(which) + 1e-7).sqrt().sum(1).mean()
        for which, side in (("Q", found.query_side), ("K", found.key_side))
    )
    torch.testing.assert_close(loss.penalty, roots)
    total = 3 * loss.both + loss.keys + loss.queries + 2 * roots
    torch.testing.assert_close(loss.total(settings), total)


def test_penalties_drive_features_to_silence(truth):
    block, x, _, _ = truth
    jump = JumpReLU(threshold=0.3, bandwidth=0.5, gradient_to="all")
    for activation, counted, weight in ((ReLU(), "roots", 0.5), (jump, "active", 2.0)):
        found = []
        for penalty in (0.0, weight):
            one = begun(block, x, n=16, activation=activation)
            loss = QKLossSettings(penalty=penalty, counted=counted)
            learn_qk(
                one, block, x, seed=1, settings=QKSettings(steps=40, rows=16, lr=1e-2, loss=loss)
            )
            found.append(qk_loss(one, block, x[:50], loss)[0].l0_K.item())
        assert found[1] < 0.8 * found[0], (activation, found)
    with pytest.raises(UserError, match="JumpReLU alone"):
        qk_loss(begun(block, x), block, x[:2], QKLossSettings(penalty=1.0, counted="active"))


def test_the_start_from_singular_directions_is_the_block_itself(truth):
    _, x, _, _ = truth
    generator = torch.Generator().manual_seed(8)
    W_Q, W_K = torch.randn(4, D_IN, D_HEAD, generator=generator), torch.randn(2, D_IN, 4)
    grouped = QKBlock(W_Q, torch.randn(4, 4), W_K, torch.randn(2, 4), PLAIN)
    one = start_qk(
        grouped, x, site="blocks.0.attn.in", n_queries=40, n_keys=16, query_activation=ReLU(),
        start="svd",
    )  # fmt: skip
    assert qk_loss(one, grouped, x[:20], QKLossSettings())[0].keys < 1e-5
    half = start_qk(
        grouped, x, site="blocks.0.attn.in", n_queries=32, n_keys=8, query_activation=ReLU(),
        start="svd",
    )  # fmt: skip
    loss = qk_loss(half, grouped, x[:20], QKLossSettings())[0]
    assert loss.queries < 1e-5
    assert loss.keys > 1e-3


def test_no_two_features_start_at_the_same_vector():
    generator = torch.Generator().manual_seed(0)
    W_Q, W_K = torch.randn(2, 2, D_IN, D_HEAD, generator=generator)
    tokens = torch.randint(10, (30, 12), generator=generator)
    x = torch.randn(10, D_IN, generator=generator)[tokens]
    one = begun(QKBlock(W_Q, torch.zeros(2, 4), W_K, torch.zeros(2, 4), PLAIN), x, n=10)
    for rows in (one.W_dec_Q, one.W_dec_K):
        unit = torch.nn.functional.normalize(rows.detach().flatten(1), dim=1)
        assert float((unit @ unit.T).triu(1).max()) < 0.999


def test_an_exponent_weighs_each_query_by_the_power_of_its_kl(truth):
    block, x, _, _ = truth
    one = begun(block, x, n=8)
    plain, halved = (
        qk_loss(one, block, x[:2], QKLossSettings(exponent=power))[0] for power in (1.0, 0.5)
    )
    found = one.run(x[:2])
    true = true_pattern(scores(block.queries(x[:2]), block.keys(x[:2]), block.scoring))
    kl = pattern_kl(true, scores(found.q, found.k, block.scoring))[..., 1:]
    torch.testing.assert_close(plain.both, kl.mean())
    torch.testing.assert_close(halved.both, kl.clamp_min(0).add(1e-7).sqrt().mean())
    slope = torch.autograd.grad(halved.both, one.W_dec_Q)[0]
    assert slope.isfinite().all()
    assert slope.any()


def test_silent_features_restart_where_the_pattern_is_worst(truth):
    block, x, _, _ = truth
    one = begun(block, x, n=4)
    with torch.no_grad():
        one.b_enc_K[:3] = -1e3
    trainer = QKTrainer(one, block, x, seed=0, settings=QKSettings(steps=20, rows=16))
    revived = [trainer.step()[1] for _ in range(6)]
    assert sum(revived) >= 3
    assert (one.b_enc_K > -100).all()


def test_a_cut_run_ends_in_the_same_bits(truth, tmp_path, monkeypatch):
    block, x, _, _ = truth
    settings = QKSettings(
        steps=16, rows=8, log_every=4, lr=2e-3, silent_share=0.5, revive_at=(0.75,)
    )

    def run(folder, steps=10**9):
        one = begun(block, x, n=8)
        with torch.no_grad():
            one.b_enc_K[:3] = -1e3  # silent from before the cut until after it
        step = QKTrainer.step

        def cut(self):
            if self.step_index == steps:
                raise KeyboardInterrupt
            return step(self)

        monkeypatch.setattr(QKTrainer, "step", cut)
        try:
            metrics = learn_qk(
                one, block, x, seed=2, settings=settings,
                checkpoints=Checkpoints(folder, seconds=0),
            )  # fmt: skip
        finally:
            monkeypatch.setattr(QKTrainer, "step", step)
        return one, metrics

    whole, log = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", steps=9)
    again, log_again = run(tmp_path / "cut")
    assert log == log_again
    assert sum(line["revived"] for line in log) >= 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
