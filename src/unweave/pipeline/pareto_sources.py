"""What `unweave pareto` is given: dictionaries, artifacts and measurements, told by their files."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unweave.artifact.folder import open_artifact
from unweave.artifact.manifest import read_manifest
from unweave.artifact.measurements import Kind, Measurements, read_measurements
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.formats import load_foreign
from unweave.errors import UserError
from unweave.pipeline.artifact_claims import read_claims
from unweave.pipeline.train import RUN
from unweave.validate.numbers.method import Method
from unweave.validate.placed import placed

EVERYTHING = "everything"
"""The place of a whole network."""


class Made(NamedTuple):
    """From what a run was made, as far as its folder says; no field where it does not."""

    subject: str | None = None
    fingerprint: str | None = None
    text: str | None = None
    tokens: int | None = None
    context: int | None = None
    seed: int | None = None
    sha256: str | None = None
    """Of the rows of text."""


class Source(NamedTuple):
    """What one RUN holds."""

    path: Path
    made: Made
    methods: tuple[Method, ...] = ()
    """What is still to be measured."""
    measured: Measurements | None = None
    """What is measured already."""


def read_source(path: Path) -> Source:
    """Read one RUN.

    Raises:
        UserError: nothing is there that could be put on a front.
    """
    if path.is_file() and path.suffix == ".json":
        return Source(path, Made(), measured=read_measurements(path))
    if (path / "manifest.json").is_file():
        return _artifact(path)
    found = load_foreign(path)
    names = _short(list(found))
    methods = [
        _method(name, dictionary) for name, dictionary in zip(names, found.values(), strict=True)
    ]
    return Source(path, _made(path), tuple(methods))


def _artifact(path: Path) -> Source:
    manifest = read_manifest(path)
    parts = load_foreign(path / "dictionaries")
    # Attention before the MLP within a layer, layers in their order, as the manifest has them.
    standing = tuple(placed(name, parts[name]) for name in manifest.parts)
    method = Method(
        path.absolute().name, "decompiled", standing, "every block as its part, propagated",
        edges=len(open_artifact(path).edges()["source"]),
        claims=read_claims(path, [(part.name, part.coder.n_latents) for part in standing]),
    )  # fmt: skip
    settings = manifest.settings
    context, tokens = (settings.get(key) for key in ("context", "tokens"))
    made = Made(
        manifest.subject.name, manifest.subject.fingerprint, manifest.text.name,
        tokens if isinstance(tokens, int) else None,
        context if isinstance(context, int) else None, manifest.seed, manifest.text.sha256,
    )  # fmt: skip
    return Source(path, made, (method,))


def _method(name: str, dictionary: Dictionary) -> Method:
    spec = dictionary.spec
    kind: Kind = "dictionary" if spec.reads == spec.writes else "transcoder"
    note = f"{spec.n_latents:,} latents, {spec.activation.kind}"
    return Method(name, kind, (placed(name, dictionary),), note)


def _short(names: Sequence[str]) -> list[str]:
    """The last part of every name, as long as that tells them apart."""
    last = [name.rsplit("/", 1)[-1] for name in names]
    return last if len(set(last)) == len(last) else [name.replace("/", ".") for name in names]


def _made(path: Path) -> Made:
    """What `unweave train` says of a run, in its folder or above the dictionary's own."""
    folder = next((f for f in (path, *path.absolute().parents[:2]) if (f / RUN).is_file()), None)
    if folder is None:
        return Made()
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
        asked = run["settings"]
        return Made(
            run["subject"]["name"], run["subject"]["fingerprint"], asked["text"],
            asked["tokens"], asked["context"], asked["seed"], run["text"]["sha256"],
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RUN} does not say how the run was made: it is damaged") from (
            error
        )


def identity(method: Method) -> str:
    """A digest of the weights of a method's parts, where they stand and what is said of them."""
    said = sorted(method.claims.items()) if method.claims is not None else None
    digest = hashlib.sha256(f"{method.kind} {method.edges} {said}".encode())
    for part in method.parts:
        digest.update(f"{part.name} {part.reads} {part.writes}".encode())
        assert isinstance(part.coder, Dictionary)
        digest.update(part.coder.spec.model_dump_json().encode())
        for name, tensor in part.coder.state_dict().items():
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def common(sources: Sequence[Source], field: str) -> str | int | None:
    """What all sources that say it agree on; None where none says it.

    Raises:
        UserError: they do not agree.
    """
    said = {getattr(s.made, field): s.path for s in sources if getattr(s.made, field) is not None}
    if len(said) > 1:
        (one, here), (other, there) = list(said.items())[:2]
        raise UserError(
            f"{here} was made with {field} {one} and {there} with {other}: give --{field}, or "
            "compare them apart"
        )
    return next(iter(said), None)
