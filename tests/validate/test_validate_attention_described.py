"""Classes by description: what claims are about, and heads that are told apart by it."""

import torch

from unweave.circuits.attention.polysemanticity import polysemanticity
from unweave.describe.claims import (
    BigramClaim,
    Claim,
    ClassPairClaim,
    DenseClaim,
    PositionClaim,
    PreviousClassClaim,
    PreviousTokenClaim,
    RepeatClaim,
    TokenClaim,
    TokenClassClaim,
    UnexplainedClaim,
)
from unweave.describe.vocabulary import Vocabulary
from unweave.validate.attention.described import described_classes

TEXTS = [" the", " a", ",", " dog", " she", "."]
WORDS = Vocabulary.from_decode(lambda token: TEXTS[token], len(TEXTS))
REST = {"otherwise_probability": 0.01, "otherwise_activation": 1.0}


def some(count: int, *probability: float) -> dict[str, object]:
    return {**REST, "probability": probability or (0.5,) * count, "activation": (1.0,) * count}


def test_claims_are_grouped_by_what_they_are_about() -> None:
    claims: list[Claim] = [
        TokenClaim(tokens=(0,), **some(1)),
        TokenClaim(tokens=(1, 2), **some(2, 0.9, 0.1)),
        TokenClaim(tokens=(1, 2), **some(2, 0.1, 0.9)),
        PreviousTokenClaim(tokens=(2,), **some(1)),
        PreviousClassClaim(names=("comma or dash",), **some(1)),
        TokenClassClaim(names=("determiner", "pronoun"), **some(2, 0.2, 0.8)),
        BigramClaim(pairs=((2, 4),), **some(1)),
        ClassPairClaim(pairs=(("pronoun", "determiner"),), **some(1)),
        PositionClaim(octaves=(1,), **some(1)),
        RepeatClaim(names=("seen",), **some(1)),
        DenseClaim(**REST),
        UnexplainedClaim(**REST),
    ]
    found = described_classes(claims, WORDS)
    said = [found.names[c] if c >= 0 else None for c in found.classes.tolist()]
    assert said == [
        "on determiner", "on determiner", "on comma or dash", "after comma or dash",
        "after comma or dash", "on pronoun", "on pronoun", "on determiner", "by position",
        "by repetition", None, None,
    ]  # fmt: skip


def test_a_head_about_one_thing_is_told_from_a_head_about_several() -> None:
    one = [TokenClaim(tokens=(token % 2,), **some(1)) for token in range(12)]
    other = [TokenClaim(tokens=(2 + token % 4,), **some(1)) for token in range(12)]
    found = described_classes([*one, *other], WORDS)
    shares = torch.eye(2).repeat_interleave(12, 0)
    told = polysemanticity(shares, found.classes)
    assert told.share == 0.5
    assert told.commonest[0] == 1.0
    assert told.dealt_share > 0.9
