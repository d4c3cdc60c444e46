"""How the artifact was made, and how to check it."""

import json
from collections.abc import Sequence

from unweave.artifact.layout import REPORT
from unweave.artifact.manifest import Manifest
from unweave.artifact.scores import Stage
from unweave.report.html import Child, Markup, clip, element
from unweave.report.numbers import count, duration, percent, size
from unweave.report.sections.frame import absent, section, table

_LONGEST = 300
"""Characters shown of one setting."""


def making(manifest: Manifest, stages: Sequence[Stage]) -> Markup:
    """Stages, settings and files, folded away."""
    files = [(path, one) for path, one in manifest.files.items() if path != REPORT]
    settings = flat(manifest.settings)
    total = size(sum(one.bytes for _, one in files))
    lead = [
        "The artifact is a folder of plain files (safetensors, Parquet, SQLite, JSON). ",
        element("code", "unweave check DIR"),
        " verifies every hash below and that the files agree with each other.",
    ]
    identity = element("p", "Identity ", element("code", manifest.identity))
    meaning = "Two runs that came to the same result have one identity, whatever the clock said."
    rows = [
        [
            element("code", path),
            count(one.bytes),
            element("code", one.sha256[:16], title=one.sha256),
        ]
        for path, one in files
    ]
    return section(
        "making",
        "How it was made",
        lead,
        identity,
        element("p", meaning, class_="note"),
        _folded(f"Stages ({len(stages)})", _stages(stages)),
        _folded(f"Settings ({len(settings)})", _settings(settings)),
        _folded(f"Files ({len(files)}, {total})", table(["file", "bytes", "sha256"], rows)),
    )


def flat(value: object, name: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value), in the file's order.

    >>> flat({"a": {"b": 1}, "c": [2, 3]})
    [('a.b', '1'), ('c', '[2, 3]')]
    """
    if isinstance(value, dict) and value:
        pairs: list[tuple[str, str]] = []
        for key, item in value.items():
            pairs += flat(item, f"{name}.{key}" if name else str(key))
        return pairs
    if not name:
        return []
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(name, clip(shown, _LONGEST))]


def _folded(title: str, body: Markup) -> Markup:
    return element("details", element("summary", title), body)


def _stages(stages: Sequence[Stage]) -> Markup:
    if not stages:
        return absent("No times were kept.")
    total = sum(stage.seconds for stage in stages) or 1.0
    lines = [
        [stage.name, duration(stage.seconds), percent(stage.seconds / total)] for stage in stages
    ]
    return table(["stage", "time", "share"], lines)


def _settings(settings: Sequence[tuple[str, str]]) -> Markup:
    if not settings:
        return absent("No settings were kept.")
    lines: list[list[Child]] = [
        [element("code", name), element("code", value)] for name, value in settings
    ]
    return table(["setting", "value"], lines, class_="left")
