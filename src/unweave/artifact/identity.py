"""What makes two artifacts the same: every file but what the clock and the machine wrote.

Equal inputs give byte-identical files, except for what is read off the machine (`seconds`,
`peak_rss_bytes` and `threads` in scores.json and metrics.jsonl) and for report.html, which shows
it. The identity is the digest of the sorted list of [path, stable digest], where those two JSON
files are digested without the readings, and report.html and the manifest itself are left out. So
two runs with different numbers of threads have one identity exactly if they had one result.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from unweave.artifact.atomic import Json
from unweave.artifact.hashing import sha256_of_json
from unweave.artifact.layout import MANIFEST, METRICS, REPORT, SCORES

READINGS = frozenset({"seconds", "peak_rss_bytes", "threads"})
"""JSON keys whose values belong to the machine and the day, not to the result."""


def identity_of(folder: Path, digests: Iterable[tuple[str, str]]) -> str:
    """The identity of an artifact from its files as (path, sha256 of the bytes)."""
    stable = [
        [path, _without_readings(folder / path) if path in (SCORES, METRICS) else digest]
        for path, digest in sorted(digests)
        if path not in (MANIFEST, REPORT)
    ]
    return sha256_of_json(stable)


def _without_readings(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.name == METRICS:
        return sha256_of_json([_strip(json.loads(line)) for line in text.splitlines()])
    return sha256_of_json(_strip(json.loads(text)))


def _strip(value: object) -> Json:
    if isinstance(value, dict):
        return {key: _strip(inner) for key, inner in value.items() if key not in READINGS}
    if isinstance(value, list):
        return [_strip(inner) for inner in value]
    assert value is None or isinstance(value, (bool, int, float, str))
    return value
