"""Claims scrubbed: true ones recover everything, another latent's nothing, wherever they stand."""

import pytest
from tiny_subject import tiny_rows
from word_world import reader, word_latents

from unweave.describe.claims import TokenClaim
from unweave.describe.vocabulary import Vocabulary
from unweave.validate.interventions.scrub_claims import (
    ClaimsScrubbed,
    resampling,
    scrub_claims,
    scrub_resampled,
)

ROWS = tiny_rows(48, 12)
VOCABULARY = Vocabulary.from_decode(lambda token: f" w{token}", 64)
RARE = {"otherwise_probability": 2.0**-20, "otherwise_activation": 2.0**-16}


def claims(shift: int = 0) -> list[TokenClaim]:
    """Each latent is its word's, as it is; or that of the word `shift` further on."""
    return [
        TokenClaim(tokens=((word + shift) % 64,), probability=(0.9,), activation=(1.0,), **RARE)
        for word in range(64)
    ]


def test_true_claims_recover_everything_and_others_claims_nothing() -> None:
    subject = reader()
    one = word_latents(subject)
    right = scrub_claims(subject, one, claims(), VOCABULARY, ROWS)
    # Of cross-entropy a random network has nothing to lose.
    assert right.own[1].value == pytest.approx(1, abs=1e-4)
    assert right.shuffled[1].value < 0.2
    # Every firing is exchanged among the places that hold its word, and no others.
    tokens = ROWS[:, 1:].flatten()
    counts = tokens.bincount()[tokens]
    assert right.agreeing == pytest.approx(counts.double().mean().item() / len(tokens))
    assert right.alone == 0
    wrong = scrub_claims(subject, one, claims(1), VOCABULARY, ROWS)
    assert wrong.own[1].value < 0.2


def together(**shifts: int) -> ClaimsScrubbed:
    subject = reader()
    standing = []
    for name, shift in shifts.items():
        one = word_latents(subject)._replace(name=name)
        new = resampling(subject, one, claims(shift), VOCABULARY, ROWS)
        standing.append((one, new))
    return scrub_resampled(subject, standing, ROWS)


def test_several_dictionaries_are_scrubbed_in_one_network() -> None:
    right = together(a=0, b=0)
    assert right.own[1].value == pytest.approx(1, abs=1e-4)
    assert right.shuffled[1].value < 0.3
    # One of them is described wrongly: the whole suffers.
    assert together(a=0, b=1).own[1].value < 0.7
