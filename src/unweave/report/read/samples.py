"""samples.json: prompts, continued twice."""

import json
from pathlib import Path

from unweave.artifact.layout import SAMPLES
from unweave.errors import UserError
from unweave.report.facts import Sample

SHOWN = 12
"""Prompts shown at most."""


def read_samples(folder: Path) -> tuple[Sample, ...] | None:
    """The samples, or None where the artifact has none; UserError where they are damaged."""
    path = folder / SAMPLES
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return tuple(_sample(**entry) for entry in entries[:SHOWN])
    except (OSError, ValueError, TypeError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{path} is no list of prompt, original and decompiled ({error}): make it again"
        ) from error


def _sample(
    prompt: str, original: str, decompiled: str, temperature: float = 0.0, **_: object
) -> Sample:
    original, decompiled = (words.removeprefix(prompt) for words in (original, decompiled))
    return Sample(prompt, original, decompiled, float(temperature))
