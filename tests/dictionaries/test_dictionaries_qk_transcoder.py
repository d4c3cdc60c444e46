"""QK transcoders: what they compute, where they start, what comes back from disk."""

import pytest
import torch
from tiny_subject import family_subject, tiny_rows

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.attention.qk_block import attention_inputs, qk_block
from unweave.dictionaries.attention.qk_spec import QKTranscoderSpec
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.errors import UserError
from unweave.subject import load_subject, token_rows

SIZES = {"d_in": 16, "heads": 4, "kv_heads": 2, "d_head": 6, "n_queries": 20, "n_keys": 24}


def random_transcoder(activation, seed: int = 0) -> QKTranscoder:
    spec = QKTranscoderSpec(
        site="blocks.1.attn.in",
        query_activation=activation,
        key_activation=activation,
        input_scale=1.5,
        **SIZES,
    )
    transcoder = QKTranscoder(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*transcoder.parameters(), transcoder.b_in, transcoder.start_key):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return transcoder


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "activation", [ReLU(), JumpReLU(threshold=0.3), TopK(k=3), BatchTopK(k=3)], ids=lambda a: a.kind
)
def test_features_write_queries_and_keys(activation, x):
    one = random_transcoder(activation)
    pre = (x - one.b_in) * 1.5 @ one.W_enc_Q.T + one.b_enc_Q
    code = one.encode(x.flatten(0, 1), "Q").dense().view(3, 7, 20)
    active = code != 0
    torch.testing.assert_close(code[active], pre[active])
    by_hand = torch.einsum("bpi,ihd->bphd", code, one.W_dec_Q) + one.b_dec_Q
    torch.testing.assert_close(
        one.decode(one.encode(x.flatten(0, 1), "Q"), "Q").view(3, 7, 4, 6), by_hand
    )
    found = one.run(x)
    torch.testing.assert_close(found.q[:, 1:], by_hand[:, 1:])
    assert found.k.shape == (3, 7, 2, 6)
    torch.testing.assert_close(found.k[:, 0], one.start_key.expand(3, -1, -1))
    assert not torch.allclose(found.k[:, 1], found.k[:, 0])
    assert found.key_side.sparse_code.support.rows == 3 * 6


def test_the_start_token_is_never_encoded(x):
    one = random_transcoder(BatchTopK(k=3)).train()
    other = x.clone()
    other[:, 0] = 1e4
    assert torch.equal(one.run(other).q, one.run(x).q)
    assert torch.equal(one.run(other).k, one.run(x).k)


def test_topk_keeps_the_features_that_write_most(x):
    one = random_transcoder(TopK(k=3))
    with torch.no_grad():
        one.W_dec_Q[4] *= 1000
    pre = ((x - one.b_in) * 1.5 @ one.W_enc_Q.T + one.b_enc_Q)[..., 4].flatten()
    active = one.encode(x.flatten(0, 1), "Q").dense()[:, 4] != 0
    assert torch.equal(active, pre > 0)
    assert 0 < active.sum() < len(pre)


def test_gradients_reach_every_parameter(x):
    for activation in (ReLU(), TopK(k=3)):
        one = random_transcoder(activation)
        found = one.run(x)
        (found.q.square().sum() + found.k.square().sum()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.parameters())


@pytest.mark.parametrize("activation", [JumpReLU(threshold=0.3), BatchTopK(k=3)])
def test_saved_and_loaded(activation, x, tmp_path):
    one = random_transcoder(activation)
    one.save(tmp_path)
    two = QKTranscoder.load(tmp_path)
    assert two.spec == one.spec
    assert two.spec.layer == 1
    for mine, other in zip(one.run(x)[:2], two.run(x)[:2], strict=True):
        assert torch.equal(mine, other)


def test_bad_input_is_refused(x, tmp_path):
    one = random_transcoder(ReLU())
    with pytest.raises(UserError, match="width 16, not 15"):
        one.encode(x.flatten(0, 1)[:, :15], "Q")
    with pytest.raises(UserError, match=r"No spec\.json"):
        QKTranscoder.load(tmp_path)
    with pytest.raises(ValueError, match="exceeds its 24 key"):
        QKTranscoderSpec(
            site="blocks.0.attn.in", query_activation=ReLU(), key_activation=TopK(k=25), **SIZES
        )


def own_and_computed(subject, rows, layer):
    own = subject.run(rows, capture=[f"blocks.{layer}.attn.pattern"]).sites
    block = qk_block(subject, layer, rows.shape[1])
    inputs = attention_inputs(subject, rows, [layer], rows_at_once=2)[layer]
    return own[f"blocks.{layer}.attn.pattern"], block.pattern(inputs)


def test_a_block_gives_the_pattern_of_wren():
    subject = load_subject("wren", dtype="float32")
    rows = token_rows(subject, "heldout", tokens=2000, context=128).train[:3]
    for layer in range(5):
        own, computed = own_and_computed(subject, rows, layer)
        assert (own - computed).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama-bias", "gpt2", "gpt-neox", "qwen2"])
def test_a_block_gives_the_pattern_of_other_families(family):
    subject = family_subject(family)
    own, computed = own_and_computed(subject, tiny_rows(3, 12), 1)
    assert (own - computed).abs().max() < 1e-5
    assert own[0, 0, 3, 0] != pytest.approx(0.25, abs=1e-3)
