"""Where each thing lies in an artifact's folder: one name for it in the whole project."""

from pathlib import Path

MANIFEST = "manifest.json"
SCORES = "scores.json"
SAMPLES = "samples.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
EDGES_TABLE = "graph/edges.parquet"
DESCRIPTIONS = "descriptions.sqlite"
TOKENS = "firings/tokens.npy"
"""The evidence text, int32 [rows, pos]; its first rows are for explaining, the rest held out."""
TOKEN_TEXT = "firings/token_text.json"
"""A list: entry i is token i as text, alone (U+FFFD where its bytes are no UTF-8)."""


def weights_of(folder: Path, part: str) -> Path:
    """A part's weights, safetensors."""
    return folder / "dictionaries" / part / "weights.safetensors"


def spec_of(folder: Path, part: str) -> Path:
    """What a part is apart from its weights, JSON."""
    return folder / "dictionaries" / part / "spec.json"


def firings_of(folder: Path, part: str) -> Path:
    """The folder of a part's firings; see `artifact.firings`."""
    return folder / "firings" / part


def features_of(folder: Path, part: str) -> Path:
    """The table of a part's features; see `artifact.features`."""
    return folder / "features" / f"{part}.safetensors"
