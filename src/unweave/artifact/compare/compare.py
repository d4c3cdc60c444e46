"""`unweave diff`: what changed from one artifact to another.

Inputs and settings first, as they explain the rest; then what was measured; then features: which
are in both, which are gone, which are new, and whose description says something else now.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import Field, JsonValue, NonNegativeInt
from torch import Tensor

from unweave.artifact.compare.matching import nearest_both_ways, shuffled_coordinates
from unweave.artifact.folder import Artifact, open_artifact
from unweave.artifact.records import Record
from unweave.artifact.scores import Interval, Scores
from unweave.progress import QUIET, Progress

SAME = 0.9
"""Cosine from which two features count as one."""
LISTED = 20
"""Features listed of those that are gone or new, those that write most."""


class Change(Record):
    """One entry that differs."""

    name: str
    """Its path, such as `settings.local.lr`."""
    before: JsonValue
    """In the first artifact; null where it has none."""
    after: JsonValue
    """In the second."""


class Measured(Record):
    """One number of both."""

    name: str
    """Which, such as `propagated.ce_increase`."""
    before: Interval
    """In the first."""
    after: Interval
    """In the second."""

    @property
    def apart(self) -> bool:
        """Whether the intervals do not meet; without intervals, whether the numbers differ."""
        ends = (self.before.low, self.before.high, self.after.low, self.after.high)
        low, high, other_low, other_high = ends
        if low is None or high is None or other_low is None or other_high is None:
            return self.before.value != self.after.value
        return high < other_low or other_high < low


class PartChange(Record):
    """The features of one part."""

    part: str
    """Its name."""
    refused: str | None = None
    """Why its features cannot be compared; null where they were."""
    alive_before: NonNegativeInt = 0
    """Features of the first that ever fired."""
    alive_after: NonNegativeInt = 0
    """Features of the second that ever fired."""
    kept: NonNegativeInt = 0
    """Features in both: each other's nearest, at a cosine of 0.9 or more."""
    kept_by_chance: NonNegativeInt = 0
    """The same with the second's coordinates shuffled."""
    described_otherwise: NonNegativeInt = 0
    """Of those in both, features whose words differ."""
    gone: list[str] = Field(default_factory=list)
    """Ids of the first's features without a match, those that write most first."""
    new: list[str] = Field(default_factory=list)
    """Ids of the second's features without a match, those that write most first."""


class Comparison(Record):
    """Two artifacts side by side."""

    first: str
    """Folder of the first."""
    second: str
    """Folder of the second."""
    identical: bool
    """Whether they hold the same results, byte for byte."""
    same_subject: bool
    """Whether both take the same weights apart."""
    inputs: list[Change]
    """Subject, text, seed, code and settings."""
    numbers: list[Measured]
    """What was measured in both."""
    parts: list[PartChange]
    """By layer."""


def compare(first: Path, second: Path, *, progress: Progress = QUIET) -> Comparison:
    """Compare two finished artifacts.

    Features are matched by direction, which means something where both take the same network
    apart, or one that was tuned from the other.

    Raises:
        UserError: a folder is no finished artifact, or a file in it is damaged.
    """
    a, b = open_artifact(first), open_artifact(second)
    names = list(dict.fromkeys([*a.parts, *b.parts]))
    parts = []
    with progress.task("Comparing", total=len(names), unit="parts") as advance:
        for name in names:
            parts.append(_part(a, b, name))
            advance(1)
    return Comparison(
        first=str(first),
        second=str(second),
        identical=a.manifest.identity == b.manifest.identity,
        same_subject=a.manifest.subject.fingerprint == b.manifest.subject.fingerprint,
        inputs=list(_changes(_inputs(a), _inputs(b))),
        numbers=_numbers(a.scores(), b.scores()),
        parts=parts,
    )


def _inputs(artifact: Artifact) -> dict[str, object]:
    said = artifact.manifest.model_dump(mode="json")
    return {k: said[k] for k in ("subject", "text", "seed", "dtype", "code", "settings")}


def _changes(a: object, b: object, path: str = "") -> Iterator[Change]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in dict.fromkeys([*a, *b]):
            yield from _changes(a.get(key), b.get(key), f"{path}.{key}" if path else key)
    elif a != b:
        yield Change.model_validate({"name": path, "before": a, "after": b})


def _numbers(a: Scores, b: Scores) -> list[Measured]:
    before, after = _measured(a), _measured(b)
    both = [name for name in before if name in after]
    return [Measured(name=name, before=before[name], after=after[name]) for name in both]


def _measured(scores: Scores) -> dict[str, Interval]:
    found: dict[str, Interval] = {"ce_original": scores.ce_original}
    for mode in type(scores.splice).model_fields:
        fidelity = getattr(scores.splice, mode)
        for name in type(fidelity).model_fields:
            found[f"{mode}.{name}"] = getattr(fidelity, name)
    for name in type(scores.four_numbers).model_fields:
        found[name] = getattr(scores.four_numbers, name)
    for name in ("active_features_per_token", "alive_fraction"):
        found[name] = Interval(value=getattr(scores, name))
    for name, control in scores.controls.items():
        found[f"control.{name}"] = control.ce_increase
    return {name: Interval(value=i.value, low=i.low, high=i.high) for name, i in found.items()}


def _part(a: Artifact, b: Artifact, name: str) -> PartChange:
    if name not in a.parts or name not in b.parts:
        where = "first" if name in a.parts else "second"
        return PartChange(part=name, refused=f"only the {where} artifact has it")
    written = [_written(artifact, name) for artifact in (a, b)]
    (rows_a, ids_a, mass_a), (rows_b, ids_b, mass_b) = written
    here = PartChange(part=name, alive_before=len(ids_a), alive_after=len(ids_b))
    if rows_a.shape[1] != rows_b.shape[1]:
        why = f"they write vectors of {rows_a.shape[1]} and {rows_b.shape[1]} numbers"
        return here.model_copy(update={"refused": why})
    if not len(ids_a) or not len(ids_b):
        return here.model_copy(update={"refused": "no feature of one of them ever fires"})
    forth, cosine = nearest_both_ways(rows_a, rows_b)
    kept = (forth >= 0) & (cosine >= SAME)
    by_chance, other = nearest_both_ways(rows_a, shuffled_coordinates(rows_b, seed=0))
    pairs = list(zip(ids_a[kept].tolist(), ids_b[forth[kept]].tolist(), strict=True))
    fresh = torch.ones(len(ids_b), dtype=torch.bool)
    fresh[forth[kept]] = False
    return here.model_copy(
        update={
            "kept": len(pairs),
            "kept_by_chance": int(((by_chance >= 0) & (other >= SAME)).sum()),
            "described_otherwise": _described_otherwise(a, b, name, pairs),
            "gone": _heaviest(a, name, ids_a[~kept], mass_a[~kept]),
            "new": _heaviest(b, name, ids_b[fresh], mass_b[fresh]),
        }
    )


def _written(artifact: Artifact, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder rows of features that ever fired, their numbers, and how much each writes a token."""
    table = artifact.features(part)
    alive = (table["count"] > 0).nonzero()[:, 0]
    rows = artifact.weights(part)["W_dec"][alive].flatten(1)
    mass = (table["frequency"] * table["mean_active"])[alive] * rows.norm(dim=1)
    return rows, alive, mass


def _heaviest(artifact: Artifact, part: str, ids: Tensor, mass: Tensor) -> list[str]:
    order = mass.argsort(descending=True, stable=True)[:LISTED]
    return [str(artifact.feature_id(part, latent)) for latent in ids[order].tolist()]


def _described_otherwise(a: Artifact, b: Artifact, part: str, pairs: list[tuple[int, int]]) -> int:
    """Of the features in both, how many are described in both and in different words."""
    with a.descriptions() as before, b.descriptions() as after:
        count = 0
        for old, new in pairs:
            said = before.latest(a.feature_id(part, old))
            says = after.latest(b.feature_id(part, new))
            count += said is not None and says is not None and said.text != says.text
    return count
