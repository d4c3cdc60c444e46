"""Latents planted by a rule must be explained by that rule, and random ones by none."""

from dataclasses import replace

import numpy as np
import pytest

from unweave.describe import Description, PartEvidence, describe_part, stored
from unweave.describe.contexts import context_keys
from unweave.describe.describe import DescribeSettings
from unweave.describe.explain import ExplainSettings, base_rates
from unweave.describe.vocabulary import CLASSES
from unweave.validate.planted import planted_evidence, planted_text, planted_vocabulary

VOCABULARY = planted_vocabulary()
TOKENS = planted_text(VOCABULARY)
PREVIOUS = np.roll(TOKENS, 1, axis=1)


def _class(name: str) -> np.ndarray:
    return VOCABULARY.class_of[TOKENS] == CLASSES.index(name)


@pytest.fixture(scope="module")
def pair() -> tuple[int, int]:
    """The commonest pair of tokens: frequent enough to be worth naming."""
    keys = context_keys("bigram", TOKENS[:60], VOCABULARY)[:, 1:]
    found, count = np.unique(keys, return_counts=True)
    before, now = divmod(int(found[count.argmax()]), VOCABULARY.size)
    assert count.max() >= 5
    return before, now


@pytest.fixture(scope="module")
def evidence(pair: tuple[int, int]) -> PartEvidence:
    random = np.random.default_rng(3).random(TOKENS.shape) < 0.01
    repeat = context_keys("repeat", TOKENS, VOCABULARY)
    fires = [
        np.isin(TOKENS, [101, 150, 233]),
        np.isin(PREVIOUS, [45, 301]),
        (pair[0] == PREVIOUS) & (pair[1] == TOKENS),
        _class("number") | _class("bracket"),
        np.roll(_class("end of sentence"), 1, axis=1),
        _class("number") & np.roll(_class("capitalised word"), 1, axis=1),
        np.arange(TOKENS.shape[1])[None].repeat(len(TOKENS), 0) < 4,
        repeat == 0,
        random,
        np.ones_like(TOKENS, dtype=bool),
        np.zeros_like(TOKENS, dtype=bool),
    ]
    noise = planted_evidence(TOKENS, fires, VOCABULARY)
    keep = noise.latent != 10
    token = np.repeat(np.arange(TOKENS.size), np.diff(noise.token_indptr))[keep]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(token, minlength=TOKENS.size))])
    return replace(noise, token_indptr=indptr, latent=noise.latent[keep], value=noise.value[keep])


@pytest.fixture(scope="module")
def described(evidence: PartEvidence) -> list[Description]:
    return describe_part(evidence)


@pytest.mark.parametrize(
    ("latent", "kind", "field", "expected"),
    [
        (0, "token", "tokens", {101, 150, 233}),
        (1, "previous_token", "tokens", {45, 301}),
        (3, "token_class", "names", {"number", "bracket"}),
        (4, "previous_class", "names", {"end of sentence"}),
        (5, "class_pair", "pairs", {("capitalised word", "number")}),
        (6, "position", "octaves", {0, 1}),
        (7, "repeat", "names", {"new"}),
    ],
)
def test_the_planted_rule_is_found(
    described: list[Description], latent: int, kind: str, field: str, expected: set
) -> None:
    claim = described[latent].claim
    assert claim.kind == kind
    assert set(getattr(claim, field)) == expected
    assert min(claim.probability) > 0.75
    assert claim.otherwise_probability < 0.01
    assert min(claim.activation) > claim.otherwise_activation
    assert described[latent].recall > 0.8
    assert described[latent].precision > 0.8


def test_a_planted_pair_is_found(described: list[Description], pair: tuple[int, int]) -> None:
    assert described[2].claim.kind == "bigram"
    assert described[2].claim.pairs == (pair,)


def test_random_firing_is_left_unexplained(described: list[Description]) -> None:
    assert described[8].kind == "unexplained"
    assert described[8].saved == 0
    assert described[8].claim.otherwise_probability == pytest.approx(0.01, rel=0.3)
    assert described[8].text.startswith("unexplained")


def test_hundreds_of_random_latents_are_all_left_unexplained() -> None:
    random = np.random.default_rng(0)
    rate = np.geomspace(0.0005, 0.3, 200)
    fires = [random.random(TOKENS.shape) < share for share in rate]
    found = describe_part(planted_evidence(TOKENS, fires, VOCABULARY, hit=1.0, noise=0.0))
    assert sum(description.kind != "unexplained" for description in found) <= 1


def test_dense_and_dead_latents_say_so(described: list[Description]) -> None:
    assert described[9].kind == "dense"
    assert "nearly every token" in described[9].text
    assert described[10].kind == "unexplained"
    assert described[10].text == "did not fire in the text looked at"


def test_words_name_the_tokens_and_the_share(described: list[Description]) -> None:
    for token in (101, 150, 233):
        assert VOCABULARY.show(token) in described[0].text
    assert "numbers" in described[3].text
    assert "brackets" in described[3].text
    assert "after ends of sentences" in described[4].text
    assert "positions 1 and 2-3" in described[6].text


def test_promoted_tokens_are_added_as_evidence(evidence: PartEvidence) -> None:
    promoted = np.full((evidence.n_latents, 10), -1)
    promoted[0, :2] = [120, 5]
    text = describe_part(replace(evidence, promoted=promoted))[0].text
    assert text.endswith(f'; promotes {VOCABULARY.show(120)}, "⏎"')


def test_nothing_is_learnt_from_held_out_rows(
    evidence: PartEvidence, described: list[Description]
) -> None:
    tokens = evidence.tokens.copy()
    tokens[60:, 1:] = tokens[60:, 1:][:, ::-1]
    end = evidence.token_indptr[60 * tokens.shape[1]]
    latent = evidence.latent.copy()
    latent[end:] = 0
    assert describe_part(replace(evidence, tokens=tokens, latent=latent)) == described


def test_position_0_counts_for_nothing(
    evidence: PartEvidence, described: list[Description]
) -> None:
    starts = np.arange(len(TOKENS)) * TOKENS.shape[1]
    at = evidence.token_indptr[starts]
    counts = np.diff(evidence.token_indptr)
    counts[starts] += 1
    flooded = replace(
        evidence,
        token_indptr=np.concatenate([[0], np.cumsum(counts)]),
        latent=np.insert(evidence.latent, at, 8),
        value=np.insert(evidence.value, at, 1000.0),
    )
    assert describe_part(flooded) == described


def test_describing_twice_gives_the_same(
    evidence: PartEvidence, described: list[Description]
) -> None:
    assert describe_part(evidence) == described


def test_bits_are_those_of_the_claim_and_the_saving_pays_for_them(
    described: list[Description],
) -> None:
    for description in described:
        assert description.bits == description.claim.bits(VOCABULARY.size)
        assert description.saved >= 0
        assert (description.saved > 0) == (description.kind not in ("unexplained", "dense"))


def test_saving_is_what_the_claim_itself_saves(
    evidence: PartEvidence, described: list[Description]
) -> None:
    explain = evidence.explain
    rates = base_rates(evidence).rate
    for description in described:
        fired = np.zeros(evidence.explain_tokens.shape, dtype=bool)
        mine = explain.latent == description.latent
        fired[explain.row[mine], explain.position[mine]] = True
        said = description.claim.predict(evidence.explain_tokens, VOCABULARY).probability[:, 1:]
        fired = fired[:, 1:]
        with_claim = -np.log2(np.where(fired, said, 1 - said)).sum()
        rate = rates[description.latent]
        without = -np.log2(np.where(fired, rate, 1 - rate)).sum()
        saved = without - with_claim - (description.bits - 18)
        assert description.saved == pytest.approx(saved, abs=1e-6)


def test_a_kind_that_is_not_asked_for_is_not_used(evidence: PartEvidence) -> None:
    settings = DescribeSettings(explain=ExplainSettings(kinds=("position",)))
    assert {d.kind for d in describe_part(evidence, settings)} == {
        "position", "unexplained", "dense",
    }  # fmt: skip


def test_descriptions_go_into_the_artifact(evidence: PartEvidence) -> None:
    rows = list(stored(describe_part(replace(evidence, digest="3fa9c2"))))
    assert str(rows[0].feature) == "L0.mlp/0@3fa9c2"
    assert rows[0].claim["kind"] == "token"
    assert rows[0].round == 1
