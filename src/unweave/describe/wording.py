"""Claims in words that a person can read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

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

SHOWN = 6
"""So many keys of a claim are named; the rest are counted."""
SHOWN_PROMOTED = 4
_PLURAL = {
    "end of sentence": "ends of sentences",
    "comma or dash": "commas and dashes",
    "word in -ing": "words in -ing",
    "word in -ed": "words in -ed",
    "word in -ly": "words in -ly",
    "capitals": "words in capitals",
    "white space": "white space",
    "mixed text": "mixed letters and marks",
    "non-Latin text": "non-Latin text",
}
_REPEAT = {
    "new": "tokens new to the text",
    "seen": "tokens the text had before",
    "pair seen": "tokens the text had before after the same token",
}


def listed(items: Sequence[str], *, more: int = 0, noun: str = "more") -> str:
    """Items joined as a person would.

    >>> listed(["a", "b"]), listed(["a", "b"], more=3)
    ('a and b', 'a, b and 3 more')
    """
    ends = [*items, f"{more} {noun}"] if more else list(items)
    return ends[0] if len(ends) == 1 else f"{', '.join(ends[:-1])} and {ends[-1]}"


def percent(share: float) -> str:
    """A share as a percentage, never rounded to 0 or 100 unless it is.

    >>> percent(0.934), percent(0.9996), percent(0.0004), percent(0)
    ('93%', '>99%', '0.04%', '0%')
    """
    if 0 < share < 0.01:
        return f"{share:.1%}" if share >= 0.001 else f"{max(share, 0.0001):.2%}"
    return ">99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _some(items: Sequence[str]) -> str:
    return listed(items[:SHOWN], more=max(len(items) - SHOWN, 0))


def _plural(name: str) -> str:
    return _PLURAL.get(name, f"{name}s")


def _octave(octave: int) -> str:
    first, last = 2**octave, 2 ** (octave + 1) - 1
    return str(first) if first == last else f"{first}-{last}"


def where(claim: Claim, vocabulary: Vocabulary) -> str:
    """Where a rule says its latent fires; keys listed as unlikely are left to `exceptions`."""
    likely = [p > claim.otherwise_probability for p in getattr(claim, "probability", ())]
    return _where(claim, likely, vocabulary)


def exceptions(claim: Claim, vocabulary: Vocabulary) -> str:
    """Where a rule says its latent fires less than elsewhere."""
    unlikely = [p <= claim.otherwise_probability for p in getattr(claim, "probability", ())]
    return _where(claim, unlikely, vocabulary)


def _where(claim: Claim, chosen: Sequence[bool], vocabulary: Vocabulary) -> str:
    if not any(chosen):
        return ""
    show = vocabulary.show
    match claim:
        case TokenClaim():
            return _some([show(t) for t, c in zip(claim.tokens, chosen, strict=True) if c])
        case PreviousTokenClaim():
            return "after " + _some(
                [show(t) for t, c in zip(claim.tokens, chosen, strict=True) if c]
            )
        case BigramClaim():
            pairs = [p for p, c in zip(claim.pairs, chosen, strict=True) if c]
            return _some([f"{show(b)} after {show(a)}" for a, b in pairs])
        case TokenClassClaim():
            return _some([_plural(n) for n, c in zip(claim.names, chosen, strict=True) if c])
        case PreviousClassClaim():
            return "after " + _some(
                [_plural(n) for n, c in zip(claim.names, chosen, strict=True) if c]
            )
        case ClassPairClaim():
            classes = [p for p, c in zip(claim.pairs, chosen, strict=True) if c]
            return _some([f"{_plural(b)} after {_plural(a)}" for a, b in classes])
        case PositionClaim():
            octaves = sorted(o for o, c in zip(claim.octaves, chosen, strict=True) if c)
            return "positions " + _some([_octave(octave) for octave in octaves])
        case RepeatClaim():
            return _some([_REPEAT[n] for n, c in zip(claim.names, chosen, strict=True) if c])
        case _:
            return ""


def sentence(
    claim: Claim,
    vocabulary: Vocabulary,
    *,
    count: int,
    places: int,
    matched_firings: int,
    matched_total: int,
    promoted: Integer[np.ndarray, " ten"] | None = None,
    common: Sequence[int] = (),
) -> str:
    """The claim in one sentence, with the tokens its latent promotes as evidence beside it.

    `common` are the tokens an unexplained latent fired at most.
    """
    rate = percent(count / max(places, 1))
    if not count:
        text = "did not fire in the text looked at"
    elif isinstance(claim, DenseClaim):
        text = f"fires at nearly every token ({rate})"
    elif isinstance(claim, UnexplainedClaim):
        text = f"unexplained: fires at {rate} of tokens and no short rule says at which"
        if len(common):
            text += f"; most often {listed([vocabulary.show(int(token)) for token in common])}"
    else:
        text = _rule_text(claim, vocabulary, count, matched_firings, matched_total)
    return text + promotes(promoted, vocabulary)


def _rule_text(
    claim: Claim, vocabulary: Vocabulary, count: int, matched_firings: int, matched_total: int
) -> str:
    place, exception = where(claim, vocabulary), exceptions(claim, vocabulary)
    if not place:
        rate = percent(claim.otherwise_probability)
        return f"fires at {rate} of tokens, but less {_at(exception)}"
    text = f"fires {_at(place)} ({percent(matched_firings / count)} of its firings; "
    text += f"fires at {percent(matched_firings / max(matched_total, 1))} of such places)"
    return f"{text}, less {_at(exception)}" if exception else text


def _at(place: str) -> str:
    return place if place.startswith("after ") else f"on {place}"


def promotes(promoted: Integer[np.ndarray, " ten"] | None, vocabulary: Vocabulary) -> str:
    """The tokens that a latent makes likelier, as the end of a sentence; empty if not known."""
    if promoted is None:
        return ""
    tokens = [int(token) for token in promoted if token >= 0][:SHOWN_PROMOTED]
    shown = [vocabulary.show(token) for token in tokens]
    return f"; promotes {', '.join(shown)}" if shown else ""


def common_tokens(
    latent: Int[np.ndarray, " firings"],
    token: Integer[np.ndarray, " firings"],
    n_latents: int,
    vocab_size: int,
    *,
    most: int = 3,
) -> list[list[int]]:
    """For each latent the tokens it fired at most, most first, ties by token."""
    pair, times = np.unique(latent * vocab_size + token, return_counts=True)
    owner, which = np.divmod(pair, vocab_size)
    order = np.lexsort((which, -times, owner))
    owner, which = owner[order], which[order]
    begin = np.searchsorted(owner, np.arange(n_latents + 1)).tolist()
    return [which[begin[i] : min(begin[i] + most, begin[i + 1])].tolist() for i in range(n_latents)]
