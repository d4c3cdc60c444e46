"""Scores summed over pairs of features equal the scores of the queries and keys they make."""

import pytest
import torch
from tiny_subject import family_subject, tiny_llama

from unweave.dictionaries.attention.feature_basis import (
    QKBasis,
    QKCodes,
    all_features,
    code_all,
    cut_basis,
    cut_codes,
    importance,
    reader_of,
    scores_in_features,
    whole_scores,
)
from unweave.dictionaries.attention.feature_scores import feature_scores, waves, with_bias
from unweave.dictionaries.attention.qk_spec import QKTranscoderSpec
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.subject.scores import scores, scoring

N = 10


def drawn(family="llama", *, seed=0, features=(7, 5)):
    """A basis of random features for the grouped heads of a tiny subject, and random codes."""
    subject = family_subject(family)
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    heads, kv, d = subject.n_heads, subject.n_kv_heads, subject.d_head
    basis = QKBasis(
        with_bias(draw(features[0], heads, d), draw(heads, d)),
        with_bias(draw(features[1], kv, d), draw(kv, d)),
        torch.tensor([*range(features[0]), -1]),
        torch.tensor([*range(features[1]), -1]),
        scoring(subject, 0, N),
    )
    codes = QKCodes(*(torch.cat([draw(3, N, f).relu(), torch.ones(3, N, 1)], -1) for f in features))
    return basis, codes


def seen(x):
    """Only what a query may see."""
    return x.tril()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_pairs_of_features_and_biases_sum_to_the_score(family):
    basis, codes = drawn(family)
    q = torch.einsum("rta,ahd->rthd", codes.queries[..., :-1], basis.queries[:-1])
    k = torch.einsum("rsb,bgd->rsgd", codes.keys[..., :-1], basis.keys[:-1])
    true = scores(q + basis.queries[-1], k + basis.keys[-1], basis.scoring)
    found = scores_in_features(codes, basis, torch.ones(basis.shape))
    assert (seen(found) - seen(true)).abs().max() < 1e-4
    assert (seen(whole_scores(codes, basis)) - seen(true)).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_waves_over_distance_are_the_scores_at_each_distance(family):
    basis, _ = drawn(family)
    curve = waves(basis.queries, basis.keys, basis.scoring).at(torch.arange(N))
    each = [basis.at(distance) for distance in range(N)]
    assert torch.allclose(curve, torch.stack(each, -1), atol=1e-5)
    assert (curve.std(-1).max() > 0.1) == (family != "gpt2")


def test_distance_runs_from_the_key_to_the_query():
    # With the sign of distance turned round the sum would not be the score.
    basis, _ = drawn()
    wave = waves(basis.queries, basis.keys, basis.scoring)
    back = wave._replace(sine=-wave.sine).at(torch.arange(N))
    true = torch.stack([basis.at(distance) for distance in range(N)], -1)
    assert (back - true).abs().max() > 0.1


def test_bias_terms_are_needed():
    basis, codes = drawn()
    mask = torch.ones(basis.shape)
    mask[-1] = mask[:, -1] = 0
    lack = scores_in_features(codes, basis, mask) - whole_scores(codes, basis)
    assert seen(lack).abs().max() > 0.1


def test_one_pair_alone_gives_its_own_contribution():
    basis, codes = drawn()
    mask = torch.zeros(basis.shape)
    mask[2, 3, 1] = 1
    found = scores_in_features(codes, basis, mask)[0, :, 8, 5]
    value = codes.queries[0, 8, 2] * codes.keys[0, 5, 3]
    assert found[1] == pytest.approx(float(value * basis.at(3)[2, 3, 1]), abs=1e-5)
    assert not found[[0, 2, 3]].any()


def test_importance_is_the_mean_absolute_contribution():
    basis, codes = drawn()
    kept = torch.tensor([2]), torch.tensor([3])
    one, few = cut_basis(basis, *kept), cut_codes(codes, *kept)
    alone = scores_in_features(few, one, torch.ones(1, 1, 4))
    pairs = torch.ones(N, N).tril().bool()
    want = alone[:, :, pairs].abs().mean((0, 2))
    assert torch.allclose(importance(codes, basis)[2, 3], want, atol=1e-6)


def test_the_mask_has_the_gradient_of_what_it_lets_through():
    basis, codes = drawn()
    mask = torch.full(basis.shape, 0.5, requires_grad=True)
    seen(scores_in_features(codes, basis, mask)).sum().backward()
    with torch.no_grad():
        more = mask.clone()
        more[1, 2, 3] += 1
        rise = seen(scores_in_features(codes, basis, more) - scores_in_features(codes, basis, mask))
    assert float(mask.grad[1, 2, 3]) == pytest.approx(float(rise.sum()), rel=1e-3)


def test_scores_of_features_of_a_subject_s_own_weights_are_its_scores():
    subject = tiny_llama()
    tokens = torch.randint(3, 64, (2, N), generator=torch.Generator().manual_seed(0))
    sites = [f"blocks.1.attn.{part}" for part in ("in", "q", "k")]
    x, q, k = (subject.run(tokens, capture=sites, logits=False).sites[s] for s in sites)
    rule, weights = scoring(subject, 1, N), subject.attention_weights(1)
    # Coordinates of the stream as features: what they write are the rows of the weights.
    queries, keys = weights.W_Q.transpose(0, 1), weights.W_K.transpose(0, 1)[:, ::2]
    assert not torch.allclose(queries[:, 0], queries[:, 1])
    ids = torch.arange(subject.d_model)
    basis = QKBasis(queries, keys, ids, ids, rule)
    found = scores_in_features(QKCodes(x, x), basis, torch.ones(basis.shape))
    assert (seen(found) - seen(scores(q, k, rule))).abs().max() < 1e-4


def test_grouped_keys_serve_the_heads_of_their_group():
    basis, _ = drawn()
    table = feature_scores(basis.queries, basis.keys, basis.scoring, 0)
    alone = torch.einsum("ad,bd->ab", basis.queries[:, 3], basis.keys[:, 1]) * basis.scoring.scale
    assert torch.allclose(table[..., 3], alone, atol=1e-6)


def transcoder_and_text():
    """A random QK transcoder, vectors that it reads, and how its subject scores."""
    topk = {"kind": "topk", "k": 3}
    transcoder = QKTranscoder(
        QKTranscoderSpec(
            site="blocks.0.attn.in", d_in=32, heads=4, kv_heads=2, d_head=8, n_queries=12, n_keys=9,
            query_activation=topk, key_activation=topk,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*transcoder.parameters(), transcoder.b_in, transcoder.start_key):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    x = torch.randn(2, N, 32, generator=generator)
    return transcoder, x, scoring(family_subject("llama"), 0, N)


def test_codes_of_a_transcoder_give_its_scores_the_start_s_key_included():
    transcoder, x, rule = transcoder_and_text()
    codes, basis = code_all(transcoder, x), all_features(transcoder, rule)
    with torch.no_grad():
        made = transcoder.run(x)
        true = scores(made.q, made.k, rule)
    found = scores_in_features(codes, basis, torch.ones(basis.shape))
    assert (seen(found) - seen(true)).abs().max() < 1e-4
    assert codes.keys[:, 0, :-1].count_nonzero() == 0
    assert codes.keys[:, 1:, -1].count_nonzero() == 0


def test_features_that_never_fire_are_dropped_and_scores_stay():
    transcoder, x, rule = transcoder_and_text()
    with torch.no_grad():
        transcoder.b_enc_Q[4] = transcoder.b_enc_K[5] = -1e3
    codes, basis = code_all(transcoder, x), all_features(transcoder, rule)
    reader = reader_of(transcoder, rule, x, least=1e-9)
    few, small = reader.code(x), reader.basis
    assert 4 not in reader.kept_q
    assert 5 not in reader.kept_k
    assert small.key_ids[-2:].tolist() == [-1, -2]
    assert torch.allclose(
        seen(whole_scores(few, small)), seen(whole_scores(codes, basis)), atol=1e-4
    )
