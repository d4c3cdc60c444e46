"""`unweave validate`: the four numbers of what was made, beside what must come out bad.

OUT/place/            everything that is measured there: see `unweave.pipeline.pareto`
OUT/randomised.json   the same short recipe on the trained (two seeds) and on shuffled networks
OUT/validation.md     both as tables

Repeats with another seed are those of the short recipe: what was given is measured as it is, and
nothing is trained again for it. Each method is measured once: the same command goes on where it was
cut off.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from unweave._version import __version__
from unweave.artifact.atomic import Json, write_text
from unweave.artifact.measurements import (
    Measurement,
    Measurements,
    read_measurements,
    write_measurements,
)
from unweave.errors import UserError
from unweave.pipeline.pareto import ParetoSettings, pareto, prepare
from unweave.pipeline.pareto_sources import EVERYTHING, read_source
from unweave.pipeline.randomised import (
    AGAIN,
    TRAINED,
    RandomisedSettings,
    measure_short,
    networks,
)
from unweave.pipeline.validation_table import as_markdown
from unweave.progress import QUIET, Progress
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.numbers.ground import Ground
from unweave.validate.numbers.method import Method
from unweave.validate.rivals.families import RivalSettings

Place = tuple[tuple[str, ...], tuple[str, ...]]


class ValidateSettings(BaseModel):
    """What is measured on, and beside what."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str | None = None
    """The network; what the artifact says when not given."""
    site: str | None = None
    """Only dictionaries that write here, where a run has several places."""
    text: str | None = None
    """The text; what the artifact was made from when not given, its held-out part."""
    tokens: PositiveInt | None = None
    """Tokens of it that are cut into training and held-out ones; the artifact's if not given."""
    seed: NonNegativeInt | None = None
    """Seed of the text's order; the artifact's if not given."""
    baselines: tuple[str, ...] = ("neurons", "pca")
    """Families of baselines, at the artifact's own number of active latents."""
    rows: PositiveInt = 192
    """Training rows that baselines are fitted on and described from."""
    heldout_rows: PositiveInt = 48
    """Held-out rows that everything is measured on, at most."""
    randomised: RandomisedSettings = RandomisedSettings()
    """The control of shuffled networks."""


class Validation(NamedTuple):
    """What was found, and where it lies."""

    found: Measurements
    """The artifact, its baselines and controls at its place."""
    randomised: Measurements
    """The short recipe on the trained and on shuffled networks."""
    folder: Path
    """The folder of results."""


def validate(
    path: Path, settings: ValidateSettings, *, out: Path, progress: Progress = QUIET
) -> Validation:
    """Measure an artifact, a run's dictionaries or one dictionary on held-out text.

    Raises:
        UserError: nothing there can be measured, another network's weights, or an `out` that holds
            another validation.
    """
    source = read_source(path)
    if not source.methods:
        raise UserError(f"{path} is measured already: give what it was measured from")
    chosen = [m for m in source.methods if settings.site in (None, *m.writes)]
    k = sorted({part for method in chosen for part in _active(method)})
    asked = ParetoSettings(
        subject=settings.subject, site=settings.site, text=settings.text, tokens=settings.tokens,
        seed=settings.seed, baselines=settings.baselines, rivals=RivalSettings(k=tuple(k) or (16,)),
        explain_rows=settings.rows, heldout_rows=settings.heldout_rows,
        splice_rows=settings.heldout_rows, control="twins",
    )  # fmt: skip
    pareto([path], asked, out=out / "place", progress=progress)
    found = read_measurements(out / "place" / "measurements.json")
    job = prepare([source], asked, progress)
    randomised = _randomised(job.ground, _short_place(chosen), settings, out, found)
    write_measurements(out / "randomised.json", randomised)
    write_text(out / "validation.md", as_markdown(found, randomised))
    return Validation(found, randomised, out)


def _active(method: Method) -> set[int]:
    """How many latents its parts are allowed a token, as far as their specs say."""
    counts = {getattr(part.coder.spec.activation, "k", None) for part in method.parts}  # type: ignore[attr-defined]
    return {count for count in counts if isinstance(count, int)}


def _short_place(methods: list[Method]) -> Place:
    """Where the short recipe stands: the dictionary's own place, or the middle part's."""
    parts = methods[0].parts
    middle = parts[len(parts) // 2]
    return middle.reads, middle.writes


def _randomised(
    ground: Ground, place: Place, settings: ValidateSettings, out: Path, found: Measurements
) -> Measurements:
    short = settings.randomised
    asked = {
        "subject": ground.subject.fingerprint, "text": found.text.sha256, "place": repr(place),
        "rows": [len(ground.explain), len(ground.heldout)], "code": __version__,
        "measure": ground.settings.model_dump(mode="json"),
        "short": short.model_dump(mode="json", exclude={"shuffles"}),
    }  # fmt: skip
    tasks = {
        name: Task(asked, partial(_short, ground, name, place, settings))
        for name in [TRAINED, AGAIN, *(f"shuffled-{seed}" for seed in range(short.shuffles))]
    }
    done = fan_out(
        _do, tasks, folder=out / "randomised", executor=Here(), title="Randomised weights",
        progress=ground.progress,
    )  # fmt: skip
    where = " -> ".join(", ".join(side) for side in dict.fromkeys(place))
    return found.model_copy(
        update={
            "place": where,
            "seed": short.seed,
            "methods": [Measurement.model_validate(one) for one in done.values()],
        }
    )


def _do(work: partial[Json]) -> Json:
    return work()


def _short(ground: Ground, name: str, place: Place, settings: ValidateSettings) -> Json:
    subject = networks(ground.subject, settings.randomised)[name]
    here = Ground(subject, ground.explain, ground.heldout, ground.settings, ground.progress)
    return measure_short(here, name, place, settings.randomised).model_dump(mode="json")


__all__ = ["EVERYTHING", "ValidateSettings", "Validation", "validate"]
