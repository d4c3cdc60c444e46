"""Text to token ids and back, with the text of each single token."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from unweave.subject.quiet import quiet_transformers


@runtime_checkable
class _HFTokenizer(Protocol):
    bos_token_id: int | None
    eos_token_id: int | None

    def __len__(self) -> int: ...

    def __call__(self, text: Sequence[str], *, add_special_tokens: bool) -> dict: ...

    def decode(self, ids: Sequence[int], *, clean_up_tokenization_spaces: bool) -> str: ...

    def save_pretrained(self, folder: Path) -> object: ...


class Tokenizer:
    """A Hugging Face tokenizer without its surprises: no special tokens are added, nothing is
    cleaned up, nothing is printed.
    """

    def __init__(self, inner: _HFTokenizer) -> None:
        self.inner = inner
        self.bos: int | None = inner.bos_token_id
        """Begin-of-text token."""
        self.eos: int | None = inner.eos_token_id
        """End-of-text token."""

    def __len__(self) -> int:
        return len(self.inner)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self.encode_many([text])[0]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; fast tokenizers use every core."""
        if not texts:
            return []
        with quiet_transformers():
            return self.inner(list(texts), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a row of token ids, special tokens written out."""
        return self.inner.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> str:
        """Text of one token as it stands within a text: a leading space is kept."""
        whole = self.decode([*self._anchor, token])
        return whole.removeprefix(self._anchored)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Text of each token on its own."""
        return [self.piece(int(token)) for token in ids]

    @cached_property
    def _anchor(self) -> list[int]:
        # Sentencepiece decoders drop the space of a first token: put something before it.
        return self.encode("a")[-1:]

    @cached_property
    def _anchored(self) -> str:
        return self.decode(self._anchor)
