"""What heads do and which latents are theirs, on a network whose heads were written by hand."""

import pytest
import torch
from hand_attention import HEAD, TOKENS, hand_dictionary, hand_subject, repeated_rows
from tiny_subject import tiny_llama

from unweave.circuits.attention.behaviour import head_scores, induction_by_prefix, random_tokens
from unweave.circuits.attention.direct import DirectAttribution, direct_attribution
from unweave.circuits.attention.head_weights import (
    active_shares,
    agreement,
    top_latents,
    weight_shares,
)
from unweave.circuits.attention.polysemanticity import PolysemanticitySettings, polysemanticity
from unweave.circuits.attention.reading import Places, codes_at, strongest_places
from unweave.circuits.attention.sources import (
    FAMILIES,
    KINDS,
    families,
    source_kinds,
    source_shares,
)
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.errors import UserError

PLAIN = torch.arange(3, TOKENS)


def test_heads_do_what_they_were_written_to_do() -> None:
    subject = hand_subject()
    found = head_scores(subject, rows=4, half=10, among=PLAIN)
    assert found.previous[0, 0] > 0.99
    assert found.duplicate[0, 1] == pytest.approx(0.5, abs=0.01), "the other half is the token"
    assert found.current[0, 1] == pytest.approx(0.5, abs=0.01)
    assert found.induction[1, 0] > 0.99
    others = torch.ones(2, 2, dtype=torch.bool)
    others[1, 0] = False
    assert found.induction[others].max() < 0.1
    assert found.induction_unrepeated.max() < 0.1, "without a repeat there is nothing to find"
    assert found.duplicate_unrepeated.max() < 0.1
    again = head_scores(subject, rows=4, half=10, among=PLAIN, rows_at_once=3)
    torch.testing.assert_close(again, found)


def test_a_head_that_matches_one_token_needs_no_longer_prefix() -> None:
    found = induction_by_prefix(hand_subject(), [0, 1, 3], rows=6, width=20, among=PLAIN)
    assert found[1:, 1, 0].min() > 0.99
    assert found[0].max() < 0.3, "nothing is repeated"
    assert found[:, 0, 0].max() < 0.3
    assert found[:, 1, 1].max() < 0.1
    with pytest.raises(UserError, match="cannot hold 12 tokens twice"):
        induction_by_prefix(hand_subject(), [12], width=20)


def test_random_rows_repeat_nothing() -> None:
    rows = random_tokens(hand_subject(), 5, 20, seed=1)
    assert all(len(set(row)) == 20 for row in rows.tolist())
    assert (rows != 1).all()
    with pytest.raises(UserError, match="23 different tokens do not fill a row of 30"):
        random_tokens(hand_subject(), 5, 30)


def test_shares_by_weight_are_those_of_the_norms() -> None:
    dictionary = hand_dictionary(1, [(0, 3), (1, 4), (1, 5)])
    dictionary.W_dec[2, :2] = torch.tensor([2.4, -1.8])
    shares = weight_shares(dictionary, 2)
    torch.testing.assert_close(shares, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]]))
    assert top_latents(shares, 2).tolist() == [[0, 2], [1, 2]]
    only = torch.tensor([False, True, True])
    assert top_latents(shares, 2, among=only).tolist() == [[2, 1], [1, 2]]
    with pytest.raises(UserError, match="2 latents are too few for the 10"):
        top_latents(shares, among=only)
    with pytest.raises(UserError, match="80 is not made of 3 heads"):
        weight_shares(dictionary, 3)


def test_weights_and_activations_disagree_where_a_decoder_writes_elsewhere() -> None:
    """The latent reads head 0 alone and writes mostly head 1: weights name the wrong head."""
    subject, tokens = hand_subject(), repeated_rows(4, 8)
    reads = [(0, int(token)) for token in PLAIN]
    dictionary = hand_dictionary(1, reads)
    places = strongest_places(codes_at(subject, "blocks.1.attn.z", dictionary, tokens), 16, 5)
    found = direct_attribution(subject, "blocks.1.attn.z", dictionary, tokens, places)
    active = active_shares(found, places, len(reads))
    same = agreement(weight_shares(dictionary, 2), active, count=3)
    assert same.same_head == 1.0
    assert same.overlap > 0.99
    dictionary.W_dec[:, HEAD:] = 2.0
    other = agreement(weight_shares(dictionary, 2), active, count=3)
    assert other.same_head == 0.0
    assert other.overlap < 0.3


def test_agreement_stands_beside_latents_exchanged_at_random() -> None:
    g = torch.Generator().manual_seed(0)
    a = torch.rand(400, 6, generator=g).pow(4)
    a = a / a.sum(1, keepdim=True)
    noise = torch.rand(400, 6, generator=g) * 0.05
    b = (a + noise) / (a + noise).sum(1, keepdim=True)
    b[7] = 0  # nothing is known of this one
    found = agreement(a, b)
    assert found.same_head > 0.9
    assert found.same_head_exchanged == pytest.approx(1 / 6, abs=0.06)
    assert found.overlap > 0.85 > found.overlap_exchanged
    assert found.same_latents > 0.7
    assert found.same_latents_exchanged < 0.15


def test_every_source_is_of_one_kind() -> None:
    a, b, c = 5, 6, 7
    row = torch.tensor([[1, a, b, *range(8, 18), a, c, a]])
    kinds = source_kinds(row)[0]
    here = [KINDS[k] if k >= 0 else "later" for k in kinds[15].tolist()]
    assert here[0] == "start"
    assert here[1] == "duplicate"
    assert here[2] == "induction"
    assert here[13] == "duplicate"
    assert here[14] == "previous", "it follows a copy too, but is one back"
    assert here[15] == "current"
    assert here[3:7] == ["far"] * 4
    assert here[7:13] == ["near"] * 6
    assert (kinds[4, 5:] == -1).all()
    assert KINDS[kinds[3, 2]] == "previous"


def test_families_are_those_that_were_built_in() -> None:
    """Latents of the induction head, of the head that looks everywhere, of a previous token."""
    subject, tokens = hand_subject(), repeated_rows(4, 8)
    upper = hand_dictionary(1, [(0, int(t)) for t in PLAIN] + [(1, int(t)) for t in PLAIN])
    found = _families(subject, "blocks.1.attn.z", upper, tokens)
    names = [FAMILIES[f] for f in found[: len(PLAIN)].tolist() if f >= 0]
    assert len(names) > 10
    assert set(names) == {"induction"}
    lower = hand_dictionary(0, [(0, int(t)) for t in PLAIN])
    found = _families(subject, "blocks.0.attn.z", lower, tokens)
    assert {FAMILIES[f] for f in found.tolist() if f >= 0} == {"short range"}


def _families(subject, site: str, dictionary, tokens) -> torch.Tensor:
    places = strongest_places(codes_at(subject, site, dictionary, tokens), 16, 3)
    attribution = direct_attribution(subject, site, dictionary, tokens, places)
    return families(source_shares(attribution, places, tokens, dictionary.n_latents))


def test_shares_of_sources_stand_beside_those_of_reading_everywhere_alike() -> None:
    tokens = torch.tensor([[1, 5, 6, 7, 5]])
    places = Places(torch.tensor([0, 0]), torch.tensor([4, 4]), torch.tensor([0, 2]))
    even = torch.zeros(2, 3, 5)
    even[0] = 1.0
    even[1, 0, 2], even[1, 1, 3] = 3.0, -5.0
    found = source_shares(DirectAttribution(even, torch.zeros(2)), places, tokens, 3)
    torch.testing.assert_close(found.shares[0], found.chance[0])
    assert found.shares[2, KINDS.index("induction")] == 1.0, "what is negative does not count"
    assert found.chance[2, KINDS.index("induction")] == pytest.approx(0.2)
    assert found.distance.tolist() == pytest.approx([1.5, 0.0, 2.0])
    assert found.places.tolist() == [1, 0, 1]
    assert families(found).tolist()[1] == -1


def test_heads_of_one_kind_are_told_from_heads_of_several() -> None:
    heads, each = 8, 30
    shares = torch.eye(heads).repeat_interleave(each, 0)
    own = torch.arange(heads).repeat_interleave(each) % 4
    pure = polysemanticity(shares, own)
    assert pure.share == 0.0
    assert pure.dealt_share > 0.95, "dealt out at random, every head has latents of every class"
    assert pure.classes.max() == pytest.approx(1.0)
    mixed = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    several = polysemanticity(shares, mixed)
    assert several.share == 1.0
    assert several.commonest.mean() == pytest.approx(several.dealt_commonest, abs=0.1)
    one = polysemanticity(shares, torch.zeros_like(own))
    assert one.share == one.dealt_share == 0.0, "with one class nothing can be told"
    strict = polysemanticity(shares, mixed, settings=PolysemanticitySettings(most=0.05))
    assert strict.share == 0.0
    few = own.where(torch.arange(len(own)) < 5, -1)
    with pytest.raises(UserError, match="5 latents are too few"):
        polysemanticity(shares, few)


def test_scores_serve_shared_keys_and_any_width() -> None:
    subject = tiny_llama()
    found = head_scores(subject, rows=3, half=8)
    assert found.previous.shape == (2, 4)
    total = found.previous + found.current + found.start + found.duplicate + found.induction
    assert total.max() <= 1.0
    assert weight_shares(coordinates(32), 4).sum(1).min() == pytest.approx(1.0)
