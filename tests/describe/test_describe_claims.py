import numpy as np
import pytest
from pydantic import ValidationError

from unweave.describe.claims import (
    CLAIM,
    BigramClaim,
    Claim,
    ClassPairClaim,
    DenseClaim,
    PositionClaim,
    PreviousClassClaim,
    PreviousTokenClaim,
    RepeatClaim,
    Rule,
    TokenClaim,
    TokenClassClaim,
    UnexplainedClaim,
)
from unweave.describe.rules import claims_of, compile_claims
from unweave.describe.vocabulary import Vocabulary

TEXTS = ["<s>", " dog", " Anna", ".", " 7"]
VOCABULARY = Vocabulary.from_decode(TEXTS.__getitem__, len(TEXTS))
TOKENS = np.array([[0, 1, 3, 2, 1, 3, 1]])
REST = {"otherwise_probability": 0.125, "otherwise_activation": 2.0}
ONE = {"probability": (0.75,), "activation": (4.0,)}
MATCHES: list[tuple[Claim, list[int]]] = [
    (TokenClaim(tokens=(3,), **ONE, **REST), [2, 5]),
    (PreviousTokenClaim(tokens=(3,), **ONE, **REST), [3, 6]),
    (PreviousTokenClaim(tokens=(0,), **ONE, **REST), [1]),
    (BigramClaim(pairs=((1, 3),), **ONE, **REST), [2, 5]),
    (BigramClaim(pairs=((3, 1),), **ONE, **REST), [6]),
    (TokenClassClaim(names=("capitalised word",), **ONE, **REST), [3]),
    (PreviousClassClaim(names=("end of sentence",), **ONE, **REST), [3, 6]),
    (ClassPairClaim(pairs=(("capitalised word", "lowercase word"),), **ONE, **REST), [4]),
    (PositionClaim(octaves=(1,), **ONE, **REST), [2, 3]),
    (RepeatClaim(names=("seen",), **ONE, **REST), [4, 6]),
    (RepeatClaim(names=("pair seen",), **ONE, **REST), [5]),
    (DenseClaim(**REST), []),
    (UnexplainedClaim(**REST), []),
]


@pytest.mark.parametrize(("claim", "where"), MATCHES, ids=lambda item: getattr(item, "kind", ""))
def test_a_claim_predicts_its_parameters_where_it_matches(claim: Claim, where: list[int]) -> None:
    predicted = claim.predict(TOKENS, VOCABULARY)
    expected = np.full((1, 7), 0.125)
    expected[0, where] = 0.75
    expected[0, 0] = 0
    np.testing.assert_array_equal(predicted.probability, expected)
    strength = np.full((1, 7), 2.0)
    strength[0, where] = 4.0
    np.testing.assert_array_equal(predicted.activation, expected * strength)


@pytest.mark.parametrize("claim", [claim for claim, _ in MATCHES], ids=lambda claim: claim.kind)
def test_claims_survive_json(claim: Claim) -> None:
    assert CLAIM.validate_json(CLAIM.dump_json(claim)) == claim


def test_claims_survive_being_compiled() -> None:
    claims = [claim for claim, _ in MATCHES]
    claims[-2] = DenseClaim(otherwise_probability=0.9, otherwise_activation=2.0)
    assert claims_of(compile_claims(claims, 5), 5) == claims


def test_no_claims_compile_to_nothing() -> None:
    assert compile_claims([], 5).n_latents == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "token", "tokens": [1, 2], "probability": [0.5], "activation": [1.0]},
        {"kind": "token", "tokens": [1, 1], "probability": [0.5] * 2, "activation": [1.0] * 2},
        {"kind": "token", "tokens": [], "probability": [], "activation": []},
        {"kind": "token", "tokens": [1], "probability": [1.0], "activation": [1.0]},
        {"kind": "token", "tokens": [1], "probability": [0.5], "activation": [-1.0]},
        {"kind": "rumour"},
        {"kind": "unexplained", "tokens": [1]},
        {"kind": "token_class", "names": ["nonsense"], "probability": [0.5], "activation": [1.0]},
        {"kind": "position", "octaves": [99], "probability": [0.5], "activation": [1.0]},
    ],
)
def test_a_claim_that_means_nothing_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        CLAIM.validate_python({**wrong, **REST})


def test_a_rule_that_cannot_name_its_keys_cannot_be_made() -> None:
    class Unfinished(Rule):
        def members(self) -> list[int]:
            return [1]

    with pytest.raises(TypeError, match="keys"):
        Unfinished(kind="token", **ONE, **REST)
