"""The one loop: many sets of dictionaries and settings, one pass of the data.

Each step's batch is made once and given to every trainee, so that the subject runs once for all.
A step depends only on the seed, its number and the state before it: a run that resumes from a
checkpoint ends in the same bits.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

from unweave.activations.workers import Workers
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.batches import TokenBatch, TokenSource, VectorBatch
from unweave.training.checkpoint import Checkpoints, Metrics, Progressed
from unweave.training.metrics_log import MetricsLog, Tracker
from unweave.training.plateau import Plateau, PlateauSettings
from unweave.training.trainee import Trainee


class TrainSettings(BaseModel):
    """The loop around the trainees."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    log_every: PositiveInt = 50
    """Steps between two lines of the log."""
    checkpoint_seconds: NonNegativeFloat = 120.0
    """Unfinished training is saved this often."""
    plateau: PlateauSettings | None = None
    """When given, training stops early once nothing gets better any more."""


@runtime_checkable
class Source(Protocol):
    """Batches by step."""

    steps: int

    def at(self, step: int) -> Any:
        """The batch of one step."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """A source of which several batches can be had at once at no cost."""

    def together(self, step: int) -> int:
        """How many, from this step on, once its batch has been asked for."""
        ...


def train(
    trainees: Sequence[Trainee],
    source: Source,
    *,
    begin: VectorBatch | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    checkpoints: Checkpoints | None = None,
    tracker: Tracker | None = None,
    workers: Workers | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train every trainee in place and return the log, one line per trainee and interval.

    `begin` holds the vectors from which scales and first weights are taken; a source of vectors
    gives its first batch when it is absent, and nothing is set for a source of tokens without it
    (the dictionaries then go on from what they are). With `folder`, checkpoints and
    `metrics.jsonl` are kept there and a cut run resumes; `checkpoints` go elsewhere where given.
    With `workers`, trainees step side by side, each in one thread.

    Raises:
        UserError: two trainees of one name, which their logs and checkpoints are told apart by.
    """
    _check_names(trainees)
    settings = settings or TrainSettings()
    checkpoints = checkpoints or Checkpoints(
        None if folder is None else folder / "checkpoints", seconds=settings.checkpoint_seconds
    )
    log = MetricsLog(None if folder is None else folder / "metrics.jsonl", tracker)
    plateau = Plateau(settings.plateau)
    try:
        done = _begin_or_resume(trainees, checkpoints.latest(), log, source, begin, workers)
        per_step = getattr(source, "batch", 1)
        with progress.task("Training", total=source.steps * per_step, unit="vectors") as advance:
            advance(done * per_step)
            while done < source.steps:
                batches = _batches(source, done, settings.log_every)
                _step_all(trainees, batches, workers)
                done += len(batches)
                advance(per_step * len(batches))
                if done % settings.log_every and done < source.steps:
                    continue
                log.write([_line(trainee, done) for trainee in trainees])
                if plateau.reached(log.lines):
                    break
                # Only between two log lines, or what has been summed up for the next were lost.
                checkpoints.offer(done, log.lines, lambda: {t.name: t.state() for t in trainees})
    finally:
        log.close()
    for trainee in trainees:
        trainee.finish()
    return log.lines


def _begin_or_resume(
    trainees: Sequence[Trainee],
    progressed: Progressed | None,
    log: MetricsLog,
    source: Source,
    begin: VectorBatch | None,
    workers: Workers | None,
) -> int:
    """Set every trainee to where the run stands; how many steps are done."""
    if progressed is not None:
        log.resume(progressed.metrics)
        for trainee in trainees:
            trainee.restore(progressed.tensors[trainee.name])
        return progressed.done
    log.resume([])
    first = begin or (None if isinstance(source, TokenSource) else source.at(0))
    if first is not None:
        run = map if workers is None else workers.map
        for _ in run(lambda trainee: trainee.begin(first), trainees):
            pass
    return 0


def _check_names(trainees: Sequence[Trainee]) -> None:
    names = [trainee.name for trainee in trainees]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"Two trainees are called {doubled[0]}: give each a name of its own")


def _line(trainee: Trainee, step: int) -> dict[str, float | int | str]:
    return {"trainee": trainee.name, "step": step, **trainee.report()}


def _batches(source: Source, step: int, log_every: int) -> list[Any]:
    """What every trainee goes through before the next one does: its weights stay in the cache."""
    batches = [source.at(step)]
    count = source.together(step) if isinstance(source, InBlocks) else 1
    end = min(step + count, source.steps, (step // log_every + 1) * log_every)
    return batches + [source.at(later) for later in range(step + 1, end)]


def _step_all(trainees: Sequence[Trainee], batches: Sequence[Any], workers: Workers | None) -> None:
    def steps(trainee: Trainee) -> None:
        for batch in batches:
            if workers is not None and isinstance(batch, TokenBatch):
                # Two passes at once would see each other's hooks.
                batch = replace(batch, subject=workers.twin(batch.subject))
            trainee.step(batch)

    for _ in map(steps, trainees) if workers is None else workers.map(steps, trainees):
        pass
