"""A planted job is labelled and its label holds; one that does something else fails the test."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.attention.feature_basis import reader_of, scores_in_features
from unweave.dictionaries.attention.qk_spec import QKTranscoderSpec
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.subject.scores import pattern, scores, scoring
from unweave.validate.attention.jobs import (
    Seen,
    job_effect,
    label_job,
    loss_without,
    other_entries,
    patterns_without,
    score_share,
)
from unweave.validate.attention.pair_kinds import marked, matched, pair_kinds

N, HEADS = 14, 3
ONE_HEAD = torch.tensor([0.0, 1.0, 0.0])


def text(seed=0, rows=20):
    # Few tokens, so that they come again.
    return tiny_rows(rows, N, vocab=10, seed=seed)


def by_hand(tokens, kind):
    """Patterns of a head that looks at pairs of a kind, and what is left without doing so."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(len(tokens), HEADS, N, N, generator=generator) * 0.3
    job = torch.zeros_like(noise)
    job[:, 1] = 3.0 * marked(kind, tokens).float()
    other = torch.zeros_like(noise)
    other[:, 1] = 2.0 * torch.randn(noise[:, 1].shape, generator=generator)
    whole = pattern(noise + job + other)
    return Seen(whole, pattern(noise + other)), Seen(whole, pattern(noise + job))


KINDS = pair_kinds(tiny_llama())


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_planted_job_is_labelled_and_its_label_holds(name):
    label, _ = label_job(by_hand(text(), KINDS[name])[0], KINDS, text(), ONE_HEAD)
    assert label == name
    fresh = text(seed=5, rows=40)
    job, other = by_hand(fresh, KINDS[name])
    effect = job_effect(job, [other], KINDS[name], fresh, ONE_HEAD)
    assert effect.holds
    assert effect.fall.value > 0.3
    assert effect.matched_fall.value < 0.1
    # A job that does something else fails it.
    assert not job_effect(other, [job], KINDS[name], fresh, ONE_HEAD).holds
    wrong = next(k for k in KINDS if k != name)
    assert not job_effect(job, [other], KINDS[wrong], fresh, ONE_HEAD).holds


def test_kinds_are_what_they_say():
    row = torch.tensor([[1, 5, 6, 7, 5, 8, 6]])
    pairs = {
        name: [tuple(p) for p in marked(kind, row)[0].nonzero().tolist()]
        for name, kind in KINDS.items()
    }
    assert pairs["duplicate"] == [(4, 1), (6, 2)]
    assert pairs["induction"] == [(4, 2), (6, 3)]
    assert pairs["previous token"] == [(t, t - 1) for t in range(1, 7)]
    assert pairs["two before"][0] == (2, 0)
    assert pairs["start"] == [(t, 0) for t in range(1, 7)]
    assert pairs["present token"] == [(t, t) for t in range(1, 7)]


def test_matched_pairs_are_as_far_apart_and_not_of_the_kind():
    apart = torch.arange(N)[:, None] - torch.arange(N)
    for name in ("duplicate", "induction"):
        mine, theirs = marked(KINDS[name], text()), matched(KINDS[name], text())
        assert not (theirs * mine).any()
        assert not theirs.triu(1).any()
        for distance in range(1, N - 2):
            line = apart == distance
            assert float(theirs[:, line].sum()) == pytest.approx(
                float(mine[:, line].sum()), rel=1e-4
            )
    assert matched(KINDS["start"], text())[0, 5].nonzero().tolist() == [[1]]
    assert matched(KINDS["previous token"], text())[0, 5].nonzero().tolist() == [[3]]


def setting():
    subject = tiny_llama()
    topk = {"kind": "topk", "k": 3}
    transcoder = QKTranscoder(
        QKTranscoderSpec(
            site="blocks.1.attn.in", d_in=32, heads=4, kv_heads=2, d_head=8, n_queries=12, n_keys=9,
            query_activation=topk, key_activation=topk,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*transcoder.parameters(), transcoder.b_in, transcoder.start_key):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    names = [f"blocks.1.attn.{part}" for part in ("in", "q", "k", "pattern")]
    found = subject.run(text(), capture=names).sites
    x, q, k, own = (found[name] for name in names)
    rule = scoring(subject, 1, N)
    return subject, reader_of(transcoder, rule, x, least=0.0), x, scores(q, k, rule), own


def test_taking_nothing_out_changes_nothing_and_taking_out_leaves_the_rest():
    subject, reader, x, true, own = setting()
    nothing = torch.zeros(reader.basis.shape)
    seen = patterns_without(subject, reader, text(), nothing)
    assert (seen.whole - own).abs().max() < 1e-5
    assert (seen.without - own).abs().max() < 1e-5
    plain = loss_without(subject, reader, text(), None)
    assert (loss_without(subject, reader, text(), seen) - plain).abs().max() < 1e-4
    some = (torch.rand(reader.basis.shape, generator=torch.Generator().manual_seed(2)) < 0.3) * 1.0
    seen = patterns_without(subject, reader, text(), some)
    want = pattern(true - scores_in_features(reader.code(x), reader.basis, some))
    assert (seen.without - want).abs().max() < 1e-5
    assert (seen.without - own).abs().max() > 0.1
    assert (loss_without(subject, reader, text(), seen) - plain).abs().max() > 1e-3


def test_the_share_of_scores_is_one_for_all_and_nothing_for_none():
    _, reader, x, true, _ = setting()
    everything = torch.ones(reader.basis.shape)
    made = scores_in_features(reader.code(x), reader.basis, everything)
    assert score_share(reader, x, made, everything) == pytest.approx(1, abs=1e-4)
    # What is the same for every key of a query is nothing to a softmax.
    shifted = made + 7 * torch.arange(N)[:, None]
    assert score_share(reader, x, shifted, everything) == pytest.approx(1, abs=1e-4)
    assert score_share(reader, x, true, 0 * everything) == pytest.approx(0, abs=1e-6)
    assert score_share(reader, x, true, everything) < 0


def test_other_entries_weigh_as_much_as_the_job_and_are_not_of_it():
    generator = torch.Generator().manual_seed(0)
    importance = torch.rand(20, 20, 4, generator=generator)
    job = torch.zeros(20, 20, 4)
    job[:5, :5, 1] = 0.7
    mask = torch.ones(20, 20, 4)
    other = other_entries(importance, mask, job, seed=0)
    weight = float((importance * other).sum())
    assert weight == pytest.approx(float((importance * job).sum()), rel=0.1)
    assert (other + job).max() <= 1
    assert not torch.equal(other, other_entries(importance, mask, job, seed=1))
