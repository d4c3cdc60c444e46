"""A small world whose latents fire by rules we know: what explaining and scoring is tested on."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Integer

from unweave.describe.evidence import PartEvidence
from unweave.describe.vocabulary import Vocabulary

START = 0
"""Token that every row begins with."""
_MARKS = ("<s>", ".", ",", "!", "?", "\n", " (", ")")
_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu")


def planted_vocabulary(size: int = 400) -> Vocabulary:
    """A start token, marks, numbers, capitalised and lowercase made-up words, in fixed places.

    Tokens 8 to 39 are numbers, 40 to 99 capitalised words, the rest lowercase words.
    """

    def text(token: int) -> str:
        if token < len(_MARKS):
            return _MARKS[token]
        if token < 40:
            return f" {token}"
        first, rest = divmod(token, 10)
        word = _SYLLABLES[rest] + _SYLLABLES[first % 10] + _SYLLABLES[first // 10 % 10] + "k"
        word += "a" * (first // 100)
        return f" {word.capitalize()}" if token < 100 else f" {word}"

    return Vocabulary.from_decode(text, size)


def planted_text(
    vocabulary: Vocabulary, *, rows: int = 120, positions: int = 128, seed: int = 0
) -> Int[np.ndarray, "rows pos"]:
    """Tokens drawn independently, some twenty times as often as others; rows begin with START."""
    random = np.random.default_rng(seed)
    weight = 1.0 / (10 + random.permutation(vocabulary.size - 1))
    tokens = 1 + random.choice(len(weight), size=(rows, positions), p=weight / weight.sum())
    tokens[:, 0] = START
    return tokens


def planted_evidence(
    tokens: Integer[np.ndarray, "rows pos"],
    fires: Sequence[Bool[np.ndarray, "rows pos"]],
    vocabulary: Vocabulary,
    *,
    hit: float = 0.95,
    noise: float = 0.0005,
    seed: int = 0,
) -> PartEvidence:
    """Latent i fires at a share `hit` of the places `fires[i]` and a share `noise` of the others.

    Half of the rows explain. Activations are 4 and more at planted places, about 1 at others.
    """
    random = np.random.default_rng(seed)
    planted = np.stack(fires, axis=-1)
    fired = random.random(planted.shape) < np.where(planted, hit, noise)
    fired[:, 0] = False
    value = np.where(planted, 4.0, 0.5) + random.gamma(2.0, 0.5, size=planted.shape)
    return PartEvidence(
        part="L0.mlp",
        tokens=tokens,
        explain_rows=len(tokens) // 2,
        token_indptr=np.concatenate([[0], np.cumsum(fired.sum(axis=-1).ravel())]),
        latent=np.nonzero(fired)[2].astype(np.int32),
        value=value[fired].astype(np.float16),
        n_latents=len(fires),
        vocabulary=vocabulary,
    )
