"""What token numbers look like."""

import json
from pathlib import Path

from unweave.artifact.layout import TOKEN_TEXT
from unweave.report.html import clip

LONGEST = 60
"""Characters shown of a token."""
_MARKS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})


class Words:
    """Token texts by number; a number that nobody knows shows as itself."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def __getitem__(self, token: int) -> str:
        """The token's own text, leading blank included."""
        return self._texts[token] if 0 <= token < len(self._texts) else f"⟨{token}⟩"


def read_words(folder: Path) -> Words:
    """The artifact's token texts; none where the file is absent or odd."""
    try:
        raw = json.loads((folder / TOKEN_TEXT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return Words([])
    if not isinstance(raw, list):
        return Words([])
    return Words([clip(str(text).translate(_MARKS), LONGEST) for text in raw])
