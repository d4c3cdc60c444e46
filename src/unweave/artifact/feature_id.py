"""The name of one feature, the same in every table, page and command: `L7.mlp/1234@3fa9c2`."""

import re
from pathlib import Path
from typing import NamedTuple

from unweave.artifact.hashing import sha256_of_file
from unweave.errors import UserError

_FORM = re.compile(r"(?P<part>[A-Za-z0-9_.:-]+)/(?P<latent>0|[1-9][0-9]*)@(?P<weights>[0-9a-f]{6})")


class FeatureId(NamedTuple):
    """A latent of one dictionary; `str()` gives the written form."""

    part: str
    """What the dictionary replaces, such as `L7.mlp`."""
    latent: int
    """Index among the dictionary's latents."""
    weights: str
    """First 6 hex digits of the SHA-256 of the dictionary's weights.safetensors."""

    @classmethod
    def parse(cls, text: str) -> "FeatureId":
        """Read the written form; UserError when `text` is none."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UserError(f"{text!r} is no feature id: write it like L7.mlp/1234@3fa9c2")
        return FeatureId(match["part"], int(match["latent"]), match["weights"])

    def __str__(self) -> str:
        return f"{self.part}/{self.latent}@{self.weights}"


def short_hash(weights: Path) -> str:
    """The 6 hex digits that stand for a weights file in the ids of its features."""
    return sha256_of_file(weights)[:6]
