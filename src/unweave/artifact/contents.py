"""What the files of an artifact must say of each other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ConfigDict, PositiveInt

from unweave.artifact import layout
from unweave.artifact.arrays import open_array
from unweave.artifact.descriptions import Descriptions
from unweave.artifact.feature_id import FeatureId
from unweave.artifact.features import load_features
from unweave.artifact.firings import FILES, Firings
from unweave.artifact.manifest import Manifest
from unweave.artifact.reading import fitting, json_in, record_in
from unweave.artifact.records import Record
from unweave.artifact.scores import read_scores
from unweave.artifact.tables import EDGES, read_table
from unweave.artifact.tensors import load_tensors
from unweave.errors import UserError


class _Shape(Record):
    """The part of spec.json that any kind of dictionary has."""

    model_config = ConfigDict(extra="ignore")

    name: str
    input_site: str
    output_site: str
    d_out: PositiveInt
    n_latents: PositiveInt


class _Sample(Record):
    """An entry of samples.json."""

    prompt: str
    original: str
    decompiled: str
    temperature: float = 0.0
    seed: int = 0


def content_faults(folder: Path, manifest: Manifest) -> list[str]:
    """Every disagreement among the files of an artifact, a sentence each.

    Files that are not there are passed over: that they are missing is said elsewhere.
    """
    found: list[str] = []
    latents: dict[str, int] = {}
    for part in manifest.parts:
        found += _told(_dictionary(folder, part, latents))
    found += _told(_tokens(folder, manifest))
    for part, n_latents in latents.items():
        found += _told(_firings(folder, part, n_latents))
        found += _told(_features(folder, part, n_latents))
    known = _Known(folder, manifest, latents)
    for faults in (_edges(known), _descriptions(known), _scores(known)):
        found += _told(faults)
    return found + _told(_samples(folder)) + _told(_metrics(folder))


def _told(faults: Iterator[str]) -> list[str]:
    """The faults a test finds, a reader's refusal among them."""
    found = []
    try:
        for fault in faults:
            found.append(fault)
    except UserError as error:
        found.append(str(error))
    return found


class _Known(NamedTuple):
    """What the later tests hold names against."""

    folder: Path
    manifest: Manifest
    latents: dict[str, int]
    """Latents of each part whose spec.json could be read."""

    def fault_of(self, feature: str) -> str | None:
        """What is wrong with a feature id; None when the feature exists."""
        try:
            part, latent, weights = FeatureId.parse(feature)
        except UserError as error:
            return str(error)
        path = layout.weights_of(Path(), part).as_posix()
        if part not in self.manifest.parts or path not in self.manifest.files:
            return f"{feature} names a part that the artifact has not"
        if self.manifest.files[path].sha256[:6] != weights:
            return f"{feature} belongs to other weights than those in {path}"
        if latent >= self.latents.get(part, latent + 1):
            return f"{feature} names a latent beyond the {self.latents[part]} of {part}"
        return None


def _dictionary(folder: Path, part: str, latents: dict[str, int]) -> Iterator[str]:
    spec_path, weights_path = layout.spec_of(folder, part), layout.weights_of(folder, part)
    if spec_path.is_file():
        spec = record_in(spec_path, _Shape)
        latents[part] = spec.n_latents
        if spec.name != part:
            yield f"{_short(folder, spec_path)} calls itself {spec.name!r}"
    if not weights_path.is_file():
        return
    tensors = load_tensors(weights_path)
    if part not in latents:
        return
    for name, shape in (("W_enc", (spec.n_latents, None)), ("W_dec", (spec.n_latents, spec.d_out))):
        found = tuple(tensors[name].shape) if name in tensors else None
        if found is None or found != tuple(w or f for w, f in zip(shape, found, strict=False)):
            yield (
                f"{_short(folder, weights_path)}: {name} has shape {found} "
                f"where spec.json asks for {spec.n_latents} latents and width {spec.d_out}"
            )


def _tokens(folder: Path, manifest: Manifest) -> Iterator[str]:
    vocabulary = manifest.subject.vocab_size
    if (folder / layout.TOKENS).is_file():
        tokens = open_array(folder / layout.TOKENS, dtype=np.int32, ndim=2)
        if tokens.size and (tokens.min() < 0 or tokens.max() >= vocabulary):
            yield f"{layout.TOKENS} holds tokens outside the vocabulary of {vocabulary:,}"
        if not 0 < manifest.explain_rows <= len(tokens):
            yield (
                f"the manifest gives {manifest.explain_rows} rows for explaining "
                f"where {layout.TOKENS} has {len(tokens)}"
            )
    if (folder / layout.TOKEN_TEXT).is_file():
        text = json_in(folder / layout.TOKEN_TEXT)
        if not isinstance(text, list) or not all(isinstance(word, str) for word in text):
            yield f"{layout.TOKEN_TEXT} is no list of strings"
        elif len(text) != vocabulary:
            yield f"{layout.TOKEN_TEXT} has {len(text):,} entries for {vocabulary:,} tokens"


def _firings(folder: Path, part: str, n_latents: int) -> Iterator[str]:
    where = layout.firings_of(folder, part)
    if not all((where / f"{name}.npy").is_file() for name in FILES):
        return
    firings = Firings.open(where)
    if firings.n_latents != n_latents:
        yield f"firings/{part} covers {firings.n_latents} latents where spec.json has {n_latents}"
    if (folder / layout.TOKENS).is_file():
        tokens = open_array(folder / layout.TOKENS, dtype=np.int32, ndim=2).size
        if firings.n_tokens != tokens:
            yield f"firings/{part} covers {firings.n_tokens:,} tokens where the text has {tokens:,}"
    for fault in firings.faults():
        yield f"firings/{part}: {fault}"


def _features(folder: Path, part: str, n_latents: int) -> Iterator[str]:
    path = layout.features_of(folder, part)
    if not path.is_file():
        return
    features = load_features(path)
    if len(features["count"]) != n_latents:
        rows = len(features["count"])
        yield f"{_short(folder, path)} lists {rows} latents where spec.json has {n_latents}"
    if (folder / layout.TOKENS).is_file():
        tokens = open_array(folder / layout.TOKENS, dtype=np.int32, ndim=2).size
        places = features["example_position"]
        if places.numel() and (int(places.min()) < -1 or int(places.max()) >= tokens):
            yield f"{_short(folder, path)} points at examples outside the text"


def _edges(known: _Known) -> Iterator[str]:
    if not (known.folder / layout.EDGES_TABLE).is_file():
        return
    edges = read_table(known.folder / layout.EDGES_TABLE, EDGES)
    for name in ("weight", "used"):
        if not np.isfinite(edges[name]).all():
            yield f"{layout.EDGES_TABLE}: {name} holds NaN or infinite values"
    for name, other in (("source", "token"), ("target", "logit")):
        for end in sorted(set(edges[name])):
            kind, _, token = end.partition("/")
            if kind != other:
                fault = known.fault_of(end)
            elif token.isdecimal() and int(token) < known.manifest.subject.vocab_size:
                fault = None
            else:
                fault = f"{end} names no token of the vocabulary"
            if fault is not None:
                yield f"{layout.EDGES_TABLE}: {fault}"


def _descriptions(known: _Known) -> Iterator[str]:
    path = known.folder / layout.DESCRIPTIONS
    if not path.is_file():
        return
    with Descriptions(path) as store:
        faults = store.faults()
        yield from (f"{layout.DESCRIPTIONS}: {fault}" for fault in faults)
        if faults:
            return
        for description in store:
            fault = known.fault_of(str(description.feature))
            if fault is not None:
                yield f"{layout.DESCRIPTIONS}: {fault}"


def _scores(known: _Known) -> Iterator[str]:
    if not (known.folder / layout.SCORES).is_file():
        return
    scores = read_scores(known.folder / layout.SCORES)
    if scores.subject != known.manifest.subject or scores.text != known.manifest.text:
        yield f"{layout.SCORES} is about another subject or text than the manifest"
    if [part.part for part in scores.parts] != known.manifest.parts:
        yield f"{layout.SCORES} lists other parts than the manifest"


def _samples(folder: Path) -> Iterator[str]:
    if (folder / layout.SAMPLES).is_file():
        samples = json_in(folder / layout.SAMPLES)
        if not isinstance(samples, list):
            yield f"{layout.SAMPLES} is no list"
            return
        for sample in samples:
            fitting(_Sample, sample, folder / layout.SAMPLES)


def _metrics(folder: Path) -> Iterator[str]:
    path = folder / layout.METRICS
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                json.loads(line)
            except ValueError:
                yield f"{layout.METRICS}, line {number}: no JSON"


def _short(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
