"""Classes of latents by what their descriptions are about, for `circuits.attention`.

Two latents are about the same thing here if their claims look at the same token (the current one,
the one before) and most of what they list belongs to one class of tokens: "on pronouns", "after a
comma". This is coarser than words, and finer than where a latent reads from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from unweave.describe.claims import (
    BigramClaim,
    Claim,
    ClassPairClaim,
    PositionClaim,
    PreviousClassClaim,
    PreviousTokenClaim,
    RepeatClaim,
    Rule,
    TokenClaim,
    TokenClassClaim,
)
from unweave.describe.vocabulary import CLASSES, Vocabulary


class Described(NamedTuple):
    """The class of every latent."""

    classes: Int[Tensor, " latents"]
    """Index into `names`; -1 where no rule was worth its bits."""
    names: tuple[str, ...]
    """What the classes are about, in the order in which they were first met."""


def described_classes(claims: Sequence[Claim], vocabulary: Vocabulary) -> Described:
    """Classes of one part's latents, given the claim of each."""
    about = [_about(claim, vocabulary) for claim in claims]
    names = tuple(dict.fromkeys(name for name in about if name is not None))
    number = {name: index for index, name in enumerate(names)}
    classes = torch.tensor([-1 if name is None else number[name] for name in about])
    return Described(classes, names)


def _about(claim: Claim, vocabulary: Vocabulary) -> str | None:
    """What a claim is about, or None where it says nothing."""
    match claim:
        case TokenClaim():
            return f"on {_commonest(vocabulary.class_of[list(claim.tokens)], claim)}"
        case PreviousTokenClaim():
            return f"after {_commonest(vocabulary.class_of[list(claim.tokens)], claim)}"
        case BigramClaim():
            last = [current for _, current in claim.pairs]
            return f"on {_commonest(vocabulary.class_of[last], claim)}"
        case TokenClassClaim():
            return f"on {_commonest(_indices(claim.names), claim)}"
        case PreviousClassClaim():
            return f"after {_commonest(_indices(claim.names), claim)}"
        case ClassPairClaim():
            return f"on {_commonest(_indices([current for _, current in claim.pairs]), claim)}"
        case PositionClaim():
            return "by position"
        case RepeatClaim():
            return "by repetition"
        case _:
            return None


def _indices(names: Sequence[str]) -> Int[np.ndarray, " members"]:
    return np.array([CLASSES.index(name) for name in names])


def _commonest(classes: Int[np.ndarray, " members"], claim: Rule) -> str:
    """The class of tokens with most of the probability that a rule promises."""
    weight = np.bincount(classes, weights=np.array(claim.probability), minlength=len(CLASSES))
    return CLASSES[int(weight.argmax())]
