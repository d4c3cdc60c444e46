"""The vocabulary of a subject, as rules about its tokens need it."""

from unweave.describe.vocabulary import Vocabulary
from unweave.subject import Subject


def token_texts(subject: Subject) -> tuple[str, ...]:
    """Every token of the vocabulary as text, alone; its number where there is no tokenizer."""
    size = subject.vocab_size
    tokenizer = subject.tokenizer
    if tokenizer is None:
        return tuple(f"<{token}>" for token in range(size))
    known = min(size, len(tokenizer))
    pieces = [tokenizer.piece(token) for token in range(known)]
    return (*pieces, *(f"<{token}>" for token in range(known, size)))


def vocabulary_of(subject: Subject) -> Vocabulary:
    """Texts and classes of the subject's tokens."""
    texts = token_texts(subject)
    return Vocabulary.from_decode(texts.__getitem__, len(texts))
