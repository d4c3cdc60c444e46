"""Train dictionaries at a site: text -> windows of activations -> training -> held-out scores.

    run.json                  subject, text, code, seed, resolved settings; every file with its hash
    metrics.jsonl             what was logged while training
    scores.json               held-out fidelity, rise of the cross-entropy, KL, loss recovered
    dictionaries/NAME/        weights.safetensors, spec.json; for a set a folder a member

The folder appears whole or not at all; a run that was cut off goes on and ends in the same bytes.
Started by `torchrun`, the processes share the work of each step, and the first alone writes.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from unweave._version import __version__
from unweave.activations.window import Harvester
from unweave.activations.workers import Workers
from unweave.artifact.atomic import Json, new_folder, write_json, write_json_lines
from unweave.artifact.manifest import files_in, record_of, source_commit
from unweave.dictionaries.cross_layer import load_cross_layer, save_cross_layer
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import load_dictionary, save_dictionary
from unweave.errors import UserError
from unweave.pipeline.job import Request, begin, unfinished
from unweave.pipeline.train_scores import heldout_scores
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.pipeline.train_sites import Planned, check_order, expanded, plan, ports_of
from unweave.progress import QUIET, Progress
from unweave.subject import Subject, TokenRows, load_subject, token_rows
from unweave.training.batches import TokenSource, VectorBatch, WindowSource
from unweave.training.checkpoint import Metrics
from unweave.training.metrics_log import Tracker, open_tracker, tracker_module
from unweave.training.parallel.grid import Grid, threads_each, together
from unweave.training.parallel.run import train_together
from unweave.training.parallel.sources import TokenShares, WindowShares
from unweave.training.parallel.trainee import SharedTrainee, gathered
from unweave.training.trainee import Trainee
from unweave.training.trainer import TrainSettings

RUN = "run.json"
"""The record of what was done."""
_NOT_IN_RESULT = {"threads", "checkpoint_seconds", "track", "shards"}
"""Settings that change nothing in the folder that is made."""
Sets = dict[str, dict[str, Dictionary]]
Batches = WindowSource | TokenSource | WindowShares


class _Run(NamedTuple):
    """One run under way."""

    subject: Subject
    settings: TrainSiteSettings
    text: TokenRows
    planned: list[Planned]
    work: Path
    workers: Workers
    progress: Progress
    grid: Grid


def train_site(
    subject: str | Subject,
    settings: TrainSiteSettings,
    *,
    out: Path,
    progress: Progress = QUIET,
) -> Path:
    """Train every recipe with every k from one pass of the subject; returns `out`.

    End-to-end recipes need the subject at each of their steps and take a pass of their own. Where
    `torchrun` started several processes, each of them calls this with the same arguments.

    Raises:
        UserError: a site, recipe or text that cannot be used, a tracker that is not installed,
            `out` is taken, or processes that do not make so many shards.
    """
    with together(settings.shards) as grid:
        shown = progress if grid.first else QUIET
        return _train_site(subject, settings, out.absolute(), shown, grid)


def _train_site(
    subject: str | Subject,
    settings: TrainSiteSettings,
    out: Path,
    progress: Progress,
    grid: Grid,
) -> Path:
    device = str(grid.device) if grid.many and settings.device == "cuda" else settings.device
    loaded = load_subject(subject, device=device) if isinstance(subject, str) else subject
    sites = {"site": expanded(loaded, settings.site), "to": expanded(loaded, settings.to)}
    settings = settings.model_copy(update=sites)
    chosen = settings.model_dump(mode="json", exclude=_NOT_IN_RESULT)
    request = Request(subject=loaded.fingerprint, version=__version__, settings=chosen)
    if _finished(out, request):
        if grid.first:
            shutil.rmtree(unfinished(out), ignore_errors=True)
        progress.say(f"{out} holds that run already")
        return out
    if settings.track is not None:
        tracker_module(settings.track)
    reads = ports_of(loaded, settings.site)
    writes = ports_of(loaded, settings.to or settings.site)
    check_order(loaded, reads, writes)
    planned = plan(loaded, settings, reads, writes)
    text = token_rows(
        loaded, settings.text, tokens=settings.tokens, context=settings.context,
        seed=settings.seed, progress=progress,
    )  # fmt: skip
    with Workers(settings.threads or threads_each()) as workers:
        run = _Run(loaded, settings, text, planned, unfinished(out), workers, progress, grid)
        _windows(run)  # too little text is refused before anything is made
        grid.everyone.wait()  # nothing is made before all have looked
        if grid.first:
            begin(out, request)
        grid.everyone.wait()
        lines, sets = _train_all(run)
        if not grid.first:
            return out
        rows = text.heldout[: max(1, settings.heldout_tokens // settings.context)]
        scores = heldout_scores(loaded, sets, rows, text.train, progress=progress)
    return _finish(run, request, out, lines, scores)


def _train_all(run: _Run) -> tuple[Metrics, Sets]:
    """Both passes, each unless it is done; the log and what was trained, in the order planned."""
    lines: Metrics = []
    sets: Sets = {}
    for name, with_subject in (("vectors", False), ("tokens", True)):
        mine = [p for p in run.planned if p.end_to_end == with_subject]
        if mine:
            lines += _pass(run, name, mine)
            if run.grid.first:
                sets |= {p.name: _load(run, p) for p in mine}
    return lines, {p.name: sets[p.name] for p in run.planned if p.name in sets}


def _pass(run: _Run, name: str, planned: list[Planned]) -> Metrics:
    done = run.work / "done" / f"{name}.json"
    if not done.is_file():
        source, first = _source(run, tokens=name == "tokens")
        settings = run.settings
        trainees = [_trainee(run, p, source) for p in planned]
        log = train_together(
            trainees,
            source,
            run.grid,
            begin=first,
            settings=TrainSettings(
                log_every=settings.log_every,
                checkpoint_seconds=settings.checkpoint_seconds,
                plateau=settings.plateau,
            ),
            folder=run.work / name,
            tracker=_tracker(run, name),
            workers=run.workers,
            progress=run.progress,
        )
        for trainee in trainees:
            members = gathered(trainee)
            if run.grid.first:
                _save(run, trainee.name, members)
        if run.grid.first:
            write_json(done, {"log": log})
        run.grid.everyone.wait()
    return json.loads(done.read_text(encoding="utf-8"))["log"]


def _trainee(run: _Run, planned: Planned, source: Batches) -> Trainee:
    dictionaries = {key: Dictionary(spec) for key, spec in planned.built.specs.items()}
    how: dict[str, Any] = {
        "steps": source.steps, "batch": source.batch, "seed": run.settings.seed + 1,
        "name": planned.name, "device": run.subject.device,
    }  # fmt: skip
    if run.grid.many:
        return SharedTrainee(dictionaries, planned.built.settings, grid=run.grid, **how)
    return Trainee(dictionaries, planned.built.settings, **how)


def _tracker(run: _Run, name: str) -> Tracker | None:
    if run.settings.track is None or not run.grid.first:
        return None
    settings = run.settings.model_dump(mode="json")
    config = {"subject": run.subject.name, "pass": name, **settings}
    return open_tracker(run.settings.track, "unweave", config)


def _harvester(run: _Run) -> Harvester:
    settings = run.settings
    return Harvester(
        run.subject, run.text.train, _sites(settings), workers=run.workers, seed=settings.seed,
        settings=settings.harvest, shuffled=True,
    )  # fmt: skip


def _windows(run: _Run) -> WindowSource | WindowShares:
    settings, epochs = run.settings, run.settings.epochs
    if run.grid.many:
        return WindowShares(
            run.subject, run.text.train, _sites(settings), run.grid.rows, batch=settings.batch,
            epochs=epochs, workers=run.workers, seed=settings.seed, settings=settings.harvest,
        )  # fmt: skip
    return WindowSource(_harvester(run), batch=settings.batch, epochs=epochs)


def _source(run: _Run, *, tokens: bool) -> tuple[Batches, VectorBatch]:
    """Where batches come from, and the vectors that scales and first weights are taken from."""
    windows = _windows(run)
    if not tokens:
        return windows, windows.first()
    settings, rows = run.settings, run.text.train
    at_once = max(1, settings.batch // (settings.context - 1))
    later = [site for p in run.planned for site in p.later]
    how: dict[str, Any] = {
        "rows": at_once, "steps": max(1, settings.epochs * len(rows) // at_once),
        "capture": list(dict.fromkeys([*_sites(settings), *later])), "seed": settings.seed,
    }  # fmt: skip
    if run.grid.many:
        return TokenShares(run.subject, rows, run.grid.rows, **how), windows.first()
    return TokenSource(run.subject, rows, **how), windows.first()


def _sites(settings: TrainSiteSettings) -> list[str]:
    return list(dict.fromkeys((*settings.site, *settings.to)))


def _home(run: _Run, name: str) -> Path:
    return run.work / "artifact" / "dictionaries" / name


def _save(run: _Run, name: str, members: dict[str, Dictionary]) -> None:
    home = _home(run, name)
    if len(members) > 1:
        save_cross_layer(members, home)
        return
    with new_folder(home) as partial:
        for dictionary in members.values():
            save_dictionary(dictionary, partial)


def _load(run: _Run, planned: Planned) -> dict[str, Dictionary]:
    home, specs = _home(run, planned.name), planned.built.specs
    found = (
        load_cross_layer(home)
        if len(specs) > 1
        else {name: load_dictionary(home) for name in specs}
    )
    return {name: dictionary.to(run.subject.device) for name, dictionary in found.items()}


def _finished(out: Path, request: Request) -> bool:
    if not (out / RUN).is_file():
        return False
    found = json.loads((out / RUN).read_text(encoding="utf-8"))
    wanted = json.loads(request.model_dump_json())
    have = {
        "subject": found["subject"]["fingerprint"],
        "version": found["code"]["version"],
        "settings": found["settings"],
    }
    if have != wanted:
        raise UserError(f"{out} holds another run already: choose another --out or remove it")
    return True


def _finish(run: _Run, request: Request, out: Path, lines: Metrics, scores: Json) -> Path:
    """Write what was logged and measured, hash everything, put the folder where it belongs."""
    folder, subject, text = run.work / "artifact", run.subject, run.text
    write_json_lines(folder / "metrics.jsonl", lines)
    write_json(folder / "scores.json", scores)
    files = {path: record_of(folder / path) for path in files_in(folder) if path != RUN}
    write_json(
        folder / RUN,
        {
            "subject": {
                "name": subject.name, "fingerprint": subject.fingerprint, "family": subject.family,
                "parameters": subject.parameters,
            },
            "text": {
                "name": text.source, "description": text.description, "sha256": text.sha256,
                "train_tokens": _count(text.train), "heldout_tokens": _count(text.heldout),
            },
            "code": {"version": request.version, "commit": source_commit()},
            "seed": run.settings.seed,
            "settings": request.settings,
            "trained": {p.name: p.built.settings.model_dump(mode="json") for p in run.planned},
            "files": {path: record.model_dump() for path, record in files.items()},
            **_processes(run),
        },
    )  # fmt: skip
    if out.is_dir():
        out.rmdir()  # empty: `begin` has looked
    folder.rename(out)
    shutil.rmtree(run.work, ignore_errors=True)
    return out


def _processes(run: _Run) -> dict[str, Json]:
    """How many have shared the work, where it was shared: it decides the order of sums."""
    if not run.grid.many:
        return {}
    return {"processes": {"count": run.grid.everyone.size, "shards": run.grid.latents.size}}


def _count(rows: Tensor) -> int:
    return rows.numel()
