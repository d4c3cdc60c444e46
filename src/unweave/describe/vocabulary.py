"""What the tokens of a subject look like, and which class of token each belongs to.

A class claim ("fires on numbers") covers thousands of tokens in a few bits, so classes are what
makes a short description possible. The classes are a fixed partition: every token has exactly one.
The closed classes (pronouns, prepositions, ...) are English; in other languages their tokens fall
into the classes made from the shape of the letters.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

_CLOSED = {
    "determiner": "the a an this that these those each every some any no another such",
    "pronoun": "i you he she it we they me him her us them my your his its our their mine yours "
    "hers ours theirs myself yourself himself herself itself ourselves themselves",
    "preposition": "of in to for with on at by from into about over after before under between "
    "through during without against among within upon across behind near toward towards",
    "conjunction": "and or but nor so because if while although though unless until than as when",
    "auxiliary verb": "is are was were be been being am have has had do does did will would can "
    "could shall should may might must",
    "question word": "what who whom whose which where why how",
}
_CLOSED_CLASS = {word: name for name, words in _CLOSED.items() for word in words.split()}

CLASSES: tuple[str, ...] = (
    "special token",
    "line break",
    "white space",
    "number",
    "end of sentence",
    "comma or dash",
    "quotation mark",
    "bracket",
    "symbol",
    "contraction",
    *_CLOSED,
    "capitalised word",
    "capitalised word piece",
    "capitals",
    "word in -ing",
    "word in -ed",
    "word in -ly",
    "lowercase word",
    "lowercase word piece",
    "non-Latin text",
    "mixed text",
)
"""Names of the token classes; a claim stores the name, the rule code an index into this."""

_SPECIAL = re.compile(r"<\|?[^<>\s]*\|?>|\[[A-Z]+\]")
_SPACE_MARKS = "\u2581\u0120"


def _mark_class(body: str) -> str:
    if body[0] in ".!?…":
        return "end of sentence"
    if all(letter in ",;:-–—" for letter in body):
        return "comma or dash"
    if any(letter in "\"'“”‘’`«»" for letter in body):
        return "quotation mark"
    return "bracket" if any(letter in "()[]{}<>" for letter in body) else "symbol"


def _lowercase_class(body: str) -> str:
    for ending in ("ing", "ed", "ly"):
        if body.endswith(ending) and len(body) > len(ending) + 2:
            return f"word in -{ending}"
    return "lowercase word"


def _letters_class(body: str, spaced: bool) -> str:
    if any(ord(letter) > 0x24F for letter in body):
        return "non-Latin text"
    if not spaced and body.islower():
        return "lowercase word piece"
    closed = _CLOSED_CLASS.get(body.lower())
    if closed is not None:
        return closed
    if body.islower():
        return _lowercase_class(body)
    if body.isupper() and len(body) > 1:
        return "capitals"
    if body[0].isupper() and (len(body) == 1 or body[1:].islower()):
        return "capitalised word" if spaced else "capitalised word piece"
    return "mixed text"


def token_class(text: str) -> str:
    """The class of a token by its text, one of `CLASSES`.

    >>> token_class(" dog"), token_class("42"), token_class(" The")
    ('lowercase word', 'number', 'determiner')
    """
    if not text or _SPECIAL.fullmatch(text):
        return "special token"
    spaced = text[0].isspace() or text[0] in _SPACE_MARKS
    body = text.strip().strip(_SPACE_MARKS)
    if not body:
        return "line break" if "\n" in text or "\r" in text else "white space"
    if not any(letter.isalnum() for letter in body):
        return "non-Latin text" if any(ord(c) > 0x2FFF for c in body) else _mark_class(body)
    if body.isdigit():
        return "number"
    if body.isalpha():
        return _letters_class(body, spaced)
    if any(letter in "'’" for letter in body) and body.replace("'", "").replace("’", "").isalpha():
        return "contraction"
    return "mixed text"


_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍", '"': "”", "\u2581": "␣", "\u0120": "␣"}


@lru_cache(maxsize=1 << 18)
def visible(text: str) -> str:
    r"""The text with white space shown and nothing in it that could reorder, hide or control.

    Safe to print to a terminal; it still has to be escaped for HTML.

    >>> visible(" a\n")
    '␣a⏎'
    """
    shown = []
    for letter in text:
        if letter in _VISIBLE:
            shown.append(_VISIBLE[letter])
        elif unicodedata.category(letter)[0] in "CZ":
            shown.append(f"\\u{ord(letter):04x}")
        else:
            shown.append(letter)
    return "".join(shown)


@dataclass(frozen=True)
class Vocabulary:
    """The texts and classes of all tokens of a subject; made once, shared by all parts."""

    texts: tuple[str, ...]
    """Text of each token, leading space included."""
    class_of: Int[np.ndarray, " vocab"]
    """Index into `CLASSES` of each token."""

    @classmethod
    def from_decode(cls, decode: Callable[[int], str], size: int) -> "Vocabulary":
        """Decode every token once (0.3 s for 49,152 tokens).

        >>> Vocabulary.from_decode(lambda token: [" a", "1"][token], 2).show(0)
        '"␣a"'
        """
        texts = tuple(decode(token) for token in range(size))
        index = {name: number for number, name in enumerate(CLASSES)}
        classes = np.array([index[token_class(text)] for text in texts], dtype=np.int64)
        return cls(texts=texts, class_of=classes)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.texts)

    def show(self, token: int) -> str:
        """The token's text in quotation marks, white space visible, at most 40 letters."""
        shown = visible(self.texts[token])
        return f'"{shown if len(shown) <= 40 else shown[:39] + "…"}"'
