"""Scores from the sites of queries and keys give the subject's own patterns."""

import pytest
import torch
from tiny_subject import family_subject

from unweave.errors import UserError
from unweave.subject import load_subject, token_rows
from unweave.subject.rotary import rotary, rotate
from unweave.subject.scores import pattern, scores, scoring

SERVED = ("llama", "llama-bias", "qwen2", "gpt2", "gpt-neox", "gpt-neox-sequential")


def worst(subject, tokens, layer):
    sites = [f"blocks.{layer}.attn.{part}" for part in ("q", "k", "pattern")]
    q, k, true = (subject.run(tokens, capture=sites, logits=False).sites[s] for s in sites)
    rule = scoring(subject, layer, tokens.shape[1])
    return float((pattern(scores(q, k, rule)) - true).abs().max())


@pytest.mark.parametrize("family", SERVED)
def test_scores_of_a_family_give_its_pattern(family, tokens):
    subject = family_subject(family)
    assert max(worst(subject, tokens, layer) for layer in range(2)) < 1e-5


def test_scores_of_wren_give_its_pattern():
    subject = load_subject("wren")
    rows = token_rows(subject, "heldout", tokens=2000, context=200).train[:2]
    assert max(worst(subject, rows, layer) for layer in range(5)) < 1e-5


def test_wrong_positions_do_not_give_the_pattern(tokens, monkeypatch):
    subject = family_subject("llama")
    monkeypatch.setattr("unweave.subject.scores.rotary", lambda *_: None)
    assert worst(subject, tokens, 0) > 1e-3


@pytest.mark.parametrize(
    ("family", "layer", "why"),
    [
        ("qwen3", 0, "norms its heads"),
        ("gemma2", 0, "caps its scores"),
        ("mistral", 0, "sees only 8"),
        ("gpt-neo", 1, "sees only 4"),
    ],
)
def test_layers_that_score_otherwise_are_refused(family, layer, why):
    with pytest.raises(UserError, match=why):
        scoring(family_subject(family), layer, 12)


def test_windows_longer_than_the_rows_do_not_matter(tokens):
    assert worst(family_subject("mistral"), tokens[:, :8], 0) < 1e-5
    assert worst(family_subject("gpt-neo"), tokens, 0) < 1e-5
    assert worst(family_subject("gpt-neo"), tokens[:, :4], 1) < 1e-5


def test_scores_know_only_how_far_apart_positions_are():
    cos, sin = rotary(family_subject("llama"), 12)
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(q.expand(12, 8), cos, sin) @ rotate(k.expand(12, 8), cos, sin).T
    for apart in range(-5, 6):
        line = turned.diagonal(apart)
        assert torch.allclose(line, line[:1].expand_as(line), atol=1e-5)
    assert turned[0, 0] != pytest.approx(float(turned[0, 5]), abs=1e-2)


def test_a_subject_without_rotary_positions_says_so():
    assert rotary(family_subject("gpt2"), 4) is None
    with pytest.raises(UserError, match="by different angles"):
        rotary(family_subject("gemma3"), 4)
