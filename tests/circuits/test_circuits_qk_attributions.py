"""Pairs of parts sum to the score that the subject has, and the planted pair leads."""

import pytest
import torch
from tiny_subject import family_subject

from unweave.circuits.attention.qk_attributions import (
    StreamCoder,
    attribute_scores,
    contrast,
)
from unweave.dictionaries.attention.qk_spec import QKTranscoderSpec
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject.scores import scores, scoring

HEAD, QUERY, KEYS = 3, 9, (8, 2, 0)


class Random:
    """A coder that neither reconstructs nor knows anything."""

    n_latents = 20

    def __init__(self, d):
        generator = torch.Generator().manual_seed(3)
        self.W = torch.randn(20, d, generator=generator)
        self.offset = torch.randn(d, generator=generator)

    def encode(self, x):
        pre = x @ self.W.T
        value, latent = pre.topk(4)
        return SparseCode.from_topk(latent, value, 20)

    def decode(self, code):
        return code.dense() @ self.W + self.offset

    def directions(self):
        return self.W


def true_scores(subject, layer, tokens):
    q, k = (
        subject.run(tokens[None], capture=[site], logits=False).sites[site]
        for site in (f"blocks.{layer}.attn.q", f"blocks.{layer}.attn.k")
    )
    return scores(q, k, scoring(subject, layer, len(tokens)))[0]


def row():
    tokens = torch.randint(3, 64, (12,), generator=torch.Generator().manual_seed(0))
    tokens[0] = 1
    return tokens


def transcoder(subject):
    topk = {"kind": "topk", "k": 3}
    found = QKTranscoder(
        QKTranscoderSpec(
            site="blocks.1.attn.in", d_in=32, heads=4, kv_heads=2, d_head=8, n_queries=12, n_keys=9,
            query_activation=topk, key_activation=topk,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*found.parameters(), found.b_in, found.start_key):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return found


@pytest.mark.parametrize("site", ["attn.in", "resid_pre"])
@pytest.mark.parametrize("family", ["llama", "llama-bias", "gpt2", "gpt-neox"])
def test_pairs_of_a_stream_s_latents_sum_to_the_score(family, site):
    subject = family_subject(family)
    reader = StreamCoder(Random(subject.d_model), f"blocks.1.{site}")
    found = attribute_scores(subject, 1, HEAD, row(), QUERY, KEYS, reader)
    true = true_scores(subject, 1, row())[HEAD, QUERY]
    for one, key in zip(found, KEYS, strict=True):
        assert one.total == pytest.approx(float(true[key]), abs=1e-4)
        assert one.contributions.shape == (6, 6)


@pytest.mark.parametrize("site", ["attn.in", "resid_pre"])
def test_nothing_is_left_to_the_bias_where_there_is_none(site):
    subject = family_subject("llama")
    coder = Random(subject.d_model)
    coder.offset = torch.zeros_like(coder.offset)
    reader = StreamCoder(coder, f"blocks.1.{site}")
    for one in attribute_scores(subject, 1, HEAD, row(), QUERY, KEYS, reader):
        assert one.query_ids[-1] == one.key_ids[-1] == -1
        assert one.contributions[-1].abs().max() < 1e-4
        assert one.contributions[:, -1].abs().max() < 1e-4


def test_pairs_of_a_qk_transcoder_sum_to_the_score():
    subject = family_subject("llama")
    found = attribute_scores(subject, 1, HEAD, row(), QUERY, KEYS, transcoder(subject))
    true = true_scores(subject, 1, row())[HEAD, QUERY]
    for one, key in zip(found, KEYS, strict=True):
        assert one.total == pytest.approx(float(true[key]), abs=1e-4)
    assert [one.key_ids.tolist()[-2:] for one in found] == [[-1, -3], [-1, -3], [-2, -3]]


def test_a_contrast_sums_to_the_difference_of_scores():
    subject = family_subject("llama")
    here, there, _ = attribute_scores(subject, 1, HEAD, row(), QUERY, KEYS, transcoder(subject))
    apart = contrast(here, there)
    assert apart.total == pytest.approx(here.total - there.total, abs=1e-5)
    assert len(apart.key_ids) == len(set(apart.key_ids.tolist()))
    assert not contrast(here, here).contributions.any()


def test_the_largest_pair_comes_first():
    subject = family_subject("llama")
    one, *_ = attribute_scores(subject, 1, HEAD, row(), QUERY, KEYS, transcoder(subject))
    pairs = one.top(100)
    assert sum(pair.value for pair in pairs) == pytest.approx(one.total, abs=1e-5)
    sizes = [abs(pair.value) for pair in pairs]
    assert sizes == sorted(sizes, reverse=True)
    assert {pair.query for pair in pairs} > {"bias", "error"}


def test_a_planted_pair_explains_the_score_and_a_bad_coder_leaves_it_to_the_error():
    subject = family_subject("llama")
    tokens = row()
    x = subject.run(tokens[None], capture=["blocks.1.attn.in"]).sites["blocks.1.attn.in"][0]

    class Planted(Random):
        """Latent t is the very vector at position t."""

        def encode(self, y):
            latent = ((x[:, None] - y) ** 2).sum(-1).argmin(0)
            return SparseCode.from_topk(latent[:, None], torch.ones(len(y), 1), 12)

        def decode(self, code):
            return code.dense() @ x

        def directions(self):
            return x

    site = "blocks.1.attn.in"
    good, *_ = attribute_scores(
        subject, 1, HEAD, tokens, QUERY, KEYS, StreamCoder(Planted(32), site)
    )
    assert good.top(1)[0][:2] == ("9", "8")
    assert good.top(1)[0].value == pytest.approx(good.total, abs=1e-4)
    assert good.explained > 0.999
    bad, *_ = attribute_scores(subject, 1, HEAD, tokens, QUERY, KEYS, StreamCoder(Random(32), site))
    assert bad.explained < 0.9


def test_what_cannot_be_explained_is_refused():
    subject = family_subject("llama")
    with pytest.raises(UserError, match="reads blocks"):
        attribute_scores(subject, 0, HEAD, row(), QUERY, KEYS, transcoder(subject))
    for head, key in ((4, 2), (0, 10)):
        with pytest.raises(UserError, match="has no head"):
            attribute_scores(subject, 1, head, row(), QUERY, (key,), transcoder(subject))
