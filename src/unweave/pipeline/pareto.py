"""Pareto fronts of dictionaries, artifacts and baselines at one place, all on the same text.

measurements.json     the four numbers of every method, controls included
fronts.json           both fronts, what beats what, hypervolumes, bits per nat
fronts.png, .svg      the picture
methods/NAME.json     each method's own, written when it is measured: nothing is measured twice
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt

from unweave._version import __version__
from unweave.artifact.atomic import Json, write_json
from unweave.artifact.measurements import Measurement, Measurements, write_measurements
from unweave.artifact.records import TextRecord
from unweave.errors import UserError
from unweave.pipeline.pareto_sources import EVERYTHING, Source, common, identity, read_source
from unweave.pipeline.writing import subject_record
from unweave.progress import QUIET, Progress
from unweave.report.draw.fronts import draw_fronts
from unweave.subject import Subject, TokenRows, load_subject, token_rows
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.fronts import Front, Reference, Which, fronts_of, side_by_side
from unweave.validate.length import dense_bits
from unweave.validate.numbers.ground import Ground, MeasureSettings
from unweave.validate.numbers.measure import measure
from unweave.validate.numbers.method import Method
from unweave.validate.placed import Placed
from unweave.validate.protocols.controls import random_twin
from unweave.validate.rivals.families import (
    CONTROLS,
    FAMILIES,
    RivalSettings,
    checked,
    fits,
    kind_of,
    members,
)
from unweave.validate.rivals.spot import Spot, spot

FLOOR = "loss_mean_ablation"
"""The control of every measurement that is the reference of all."""


class ParetoSettings(BaseModel):
    """What methods are measured on and which baselines stand beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    subject: str | None = None
    """The network; what the runs say when not given."""
    text: str | None = None
    """The text; what the runs say when not given, so that what they held out is held out."""
    tokens: PositiveInt | None = None
    """Tokens of it that are cut into training and held-out ones; what the runs say if not given."""
    context: PositiveInt | None = None
    """Tokens in a row; what the runs say when not given."""
    seed: NonNegativeInt | None = None
    """Seed of the text's order; what the runs say when not given."""
    site: str | None = None
    """Only dictionaries that write here, where a run has several places."""
    baselines: tuple[str, ...] = tuple(FAMILIES)
    """Families of rivals; `random`, which is the control, is always among them."""
    rivals: RivalSettings = RivalSettings()
    """How large and how sparse they are."""
    control: Literal["directions", "twins"] = "directions"
    """Random directions coded by pursuit, at every sparsity of the rivals; or a random twin of each
    dictionary, with its norms, number of latents and L0, and an encoder as fast as its own."""
    explain_rows: PositiveInt = 256
    """Training rows that rivals are fitted on and descriptions are made from."""
    heldout_rows: PositiveInt = 64
    """Held-out rows that everything is measured on, at most."""
    splice_rows: PositiveInt = 32
    """Of them those on which losses are measured."""
    choosing_rows: PositiveInt = 8
    """Rows for explaining on which the bits of a strength are chosen."""
    dtype: str = "float32"
    """What the subject computes in."""


class Comparison(NamedTuple):
    """One comparison under way."""

    ground: Ground
    """What is measured on."""
    settings: ParetoSettings
    text: TokenRows
    methods: dict[str, Method]
    """What is given, by name."""
    places: list[tuple[tuple[str, ...], tuple[str, ...]]]
    """Sites read and written, part by part."""


def pareto(
    runs: Sequence[Path], settings: ParetoSettings, *, out: Path, progress: Progress = QUIET
) -> Path:
    """Measure what is not measured yet, find both fronts and draw them; returns `out`.

    Raises:
        UserError: runs that cannot be compared, a place where a baseline cannot stand, or a
            folder that holds another comparison.
    """
    sources = [read_source(path) for path in runs]
    known = [s.measured for s in sources if s.measured is not None]
    to_measure = [s for s in sources if s.methods]
    if not to_measure:
        found = side_by_side(known)
        return _finish(found, _reference(found, None), out)
    job = prepare(to_measure, settings, progress)
    measured = _measured(job, out, progress)
    found = side_by_side([measured, *known])
    return _finish(found, _reference(found, job), out)


def prepare(sources: Sequence[Source], settings: ParetoSettings, progress: Progress) -> Comparison:
    """What methods are measured on, read and checked; nothing is measured yet."""
    checked(settings.baselines)
    subject = _subject(sources, settings)
    text = _text(sources, settings, subject, progress)
    methods = _chosen(sources, settings)
    ground = Ground(
        subject,
        text.train[: settings.explain_rows],
        text.heldout[: settings.heldout_rows],
        MeasureSettings(
            amortised_over=text.train.numel(),
            splice_rows=settings.splice_rows,
            choosing_rows=settings.choosing_rows,
        ),
        progress,
    )
    return Comparison(ground, settings, text, methods, _places(list(methods.values())))


def _name(sources: Sequence[Source], settings: ParetoSettings) -> str:
    name = settings.subject or common(sources, "subject")
    if name is None:
        raise UserError("Nothing here says which network it was made for: give --subject")
    return str(name)


def _subject(sources: Sequence[Source], settings: ParetoSettings) -> Subject:
    subject = load_subject(_name(sources, settings), dtype=settings.dtype)
    for source in sources:
        made = source.made.fingerprint
        if made is not None and made != subject.fingerprint:
            raise UserError(f"{source.path} was made for another network than {subject.name}")
    return subject


def _text(
    sources: Sequence[Source], settings: ParetoSettings, subject: Subject, progress: Progress
) -> TokenRows:
    """The text as the runs read it, so that what they held out is held out here."""
    name = settings.text or common(sources, "text")
    tokens = settings.tokens or common(sources, "tokens") or 200_000
    context = settings.context or common(sources, "context") or min(128, subject.context)
    seed = common(sources, "seed") if settings.seed is None else settings.seed
    # What a network writes itself depends on what it computes in, and runs compute as loaded.
    reader = subject if name != "self" else load_subject(_name(sources, settings))
    text = token_rows(
        reader,
        str(name or ("heldout" if subject.name == "wren" else "wiki")),
        tokens=int(tokens),
        context=int(context),
        seed=int(seed or 0),
        progress=progress,
    )
    for source in sources:
        if source.made.sha256 not in (None, text.sha256):
            progress.say(
                f"{source.path} was made from other rows of text: make sure that none of these "
                "was among them"
            )
    return text


def _chosen(sources: Sequence[Source], settings: ParetoSettings) -> dict[str, Method]:
    """The methods by name; names met twice get their run's in front."""
    found: dict[str, Method] = {}
    for source in sources:
        for method in source.methods:
            if settings.site is not None and settings.site not in method.writes:
                continue
            name = method.name
            if name in found:
                name = f"{source.path.absolute().name}.{name}"
            if name in found:
                raise UserError(f"Two of the methods are called {name}: rename a folder")
            found[name] = method._replace(name=name)
    if not found:
        raise UserError(f"No dictionary here writes {settings.site}: give another --site")
    return found


def _places(methods: Sequence[Method]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Where the methods stand, part by part.

    Raises:
        UserError: not all at the same place.
    """
    places = {tuple((p.reads, p.writes) for p in method.parts): method.name for method in methods}
    if len(places) > 1:
        (one, here), (other, there) = list(places.items())[:2]
        raise UserError(
            f"{here} stands at {_place(one)} and {there} at {_place(other)}: one plot has one "
            "place, choose it with --site"
        )
    return list(next(iter(places)))


def _place(places: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> str:
    if len(places) > 1:
        return EVERYTHING
    reads, writes = (", ".join(side) for side in places[0])
    return reads if reads == writes else f"{reads} -> {writes}"


def _measured(job: Comparison, out: Path, progress: Progress) -> Measurements:
    """Every method and family of rivals as a task that is done once."""
    spots = partial(_spots, job, {})
    asked = _asked(job)
    tasks = {
        name: Task({**asked, "identity": identity(method)}, partial(_one, job, method))
        for name, method in job.methods.items()
    }
    twins = job.settings.control == "twins"
    if twins:
        for name, method in job.methods.items():
            tasks[f"{name}-random"] = Task(
                {**asked, "twin of": identity(method)}, partial(_twin, job, method)
            )
    families = dict.fromkeys((*job.settings.baselines, *(() if twins else CONTROLS)))
    for family in families:
        if family in tasks:
            raise UserError(f"A run is called {family}, as a family of baselines is: rename it")
        settings = job.settings.rivals.model_dump(mode="json")
        tasks[family] = Task({**asked, "rivals": settings}, partial(_rivals, job, family, spots))
    found: dict[str, Any] = fan_out(
        _do, tasks, folder=out / "methods", executor=Here(), title="Measuring", progress=progress
    )
    methods = [Measurement.model_validate(one) for several in found.values() for one in several]
    text, subject = job.text, job.ground.subject
    return Measurements(
        subject=subject_record(subject),
        text=TextRecord(
            name=text.source, sha256=text.sha256, tokens=text.train.numel(),
            heldout_tokens=job.ground.heldout.numel(), context=text.train.shape[1],
        ),
        place=_place(job.places), mode="propagated",
        amortised_over=job.ground.settings.amortised_over, code=__version__,
        seed=job.settings.rivals.seed, methods=methods,
    )  # fmt: skip


def _do(work: Callable[[], Json]) -> Json:
    return work()


def _asked(job: Comparison) -> dict[str, Json]:
    """What makes two measurements comparable."""
    return {
        "subject": job.ground.subject.fingerprint,
        "text": job.text.sha256,
        "place": _place(job.places),
        "rows": [len(job.ground.explain), len(job.ground.heldout)],
        "measure": job.ground.settings.model_dump(mode="json"),
        "dtype": job.settings.dtype,
        "code": __version__,
    }


def _one(job: Comparison, method: Method) -> Json:
    return [measure(job.ground, method).model_dump(mode="json")]


def _twin(job: Comparison, method: Method) -> Json:
    """The method with a random twin in the place of each of its parts."""
    rows, subject = job.ground.explain[:2], job.ground.subject
    sites = list(dict.fromkeys(s for part in method.parts for s in (*part.reads, *part.writes)))
    found = subject.run(rows, capture=sites, logits=False).sites
    flat = {site: found[site][:, 1:].flatten(2).flatten(0, 1).float() for site in sites}
    parts = []
    for part in method.parts:
        x, y = (torch.cat([flat[s] for s in side], 1) for side in (part.reads, part.writes))
        parts.append(random_twin(part, x, y, seed=job.settings.rivals.seed))
    twin = Method(
        f"{method.name}-random", "control", tuple(parts), "random directions of the same norms"
    )
    return [measure(job.ground, twin).model_dump(mode="json")]


def _rivals(job: Comparison, family: str, spots: Callable[[], list[Spot]]) -> Json:
    """A whole family's members, fitted once for all sparsities."""
    at = spots()
    if not all(fits(family, one) for one in at):
        job.ground.progress.say(f"{family} cannot stand at {_place(job.places)}: left out")
        return []
    found = []
    for several in zip(*(members(family, one, job.settings.rivals) for one in at), strict=True):
        name = f"{family}-{several[0][0]}"
        parts = tuple(
            Placed(f"{name}.{index}", coder, one.reads, one.writes)
            for index, ((_, coder), one) in enumerate(zip(several, at, strict=True))
        )
        method = Method(name, kind_of(family), parts, FAMILIES[family].__name__.strip("_"))
        found.append(measure(job.ground, method).model_dump(mode="json"))
    return found


def _spots(job: Comparison, kept: dict[str, list[Spot]]) -> list[Spot]:
    """The places with vectors to fit on, made when the first family asks."""
    if not kept:
        ground = job.ground
        kept["all"] = [spot(ground.subject, r, w, ground.explain) for r, w in job.places]
    return kept["all"]


def _reference(found: Measurements, job: Comparison | None) -> Reference:
    """Mean ablation's loss, and the dense vectors' bits at the places written."""
    loss = next((m.controls[FLOOR].value for m in found.methods if FLOOR in m.controls), None)
    if loss is None:
        raise UserError("No method says what mean ablation costs: measure one with unweave pareto")
    if job is not None:
        widths = [job.ground.width(site) for _, writes in job.places for site in writes]
    else:
        blocks = 2 * found.subject.n_layers if found.place == EVERYTHING else 1
        widths = [found.subject.d_model] * blocks
    return Reference(length=dense_bits(sum(widths)), loss=loss)


def _finish(found: Measurements, reference: Reference, out: Path) -> Path:
    fronts = fronts_of(found, reference)
    write_measurements(out / "measurements.json", found)
    write_json(out / "fronts.json", _as_json(fronts, found))
    draw_fronts(found, fronts, [out / "fronts.png", out / "fronts.svg"])
    return out


def _as_json(fronts: dict[Which, Front], found: Measurements) -> Json:
    return {
        "subject": found.subject.name,
        "place": found.place,
        "text": found.text.name,
        "fronts": {which: front.model_dump(mode="json") for which, front in fronts.items()},
        "points": {
            method.name: {
                "kind": method.kind,
                "mathematical": [method.math_length.value, method.math_loss.value],
                "semantic": [method.semantic_length.value, method.semantic_loss.value],
            }
            for method in found.methods
        },
    }
