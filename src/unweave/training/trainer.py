"""The one loop: many sets of dictionaries and settings, one pass of the data.

Each step's batch is made once and given to every trainee, so that the subject runs once for all.
A step depends only on the seed, its number and the state before it: a run that resumes from a
checkpoint ends in the same bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveInt

from unweave.activations.workers import Workers
from unweave.progress import QUIET, Progress
from unweave.training.batches import TokenSource, VectorBatch
from unweave.training.checkpoint import Checkpoints, Metrics
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


def train(
    trainees: Sequence[Trainee],
    source: Source,
    *,
    begin: VectorBatch | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    tracker: Tracker | None = None,
    workers: Workers | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train every trainee in place and return the log, one line per trainee and interval.

    `begin` holds the vectors from which scales and first weights are taken; a source of vectors
    gives its first batch when it is absent, and nothing is set for a source of tokens without it
    (the dictionaries then go on from what they are). With `folder`, checkpoints and
    `metrics.jsonl` are kept there and a cut run resumes. With `workers`, trainees step side by
    side, each in one thread.
    """
    settings = settings or TrainSettings()
    checkpoints = Checkpoints(
        None if folder is None else folder / "checkpoints", seconds=settings.checkpoint_seconds
    )
    log = MetricsLog(None if folder is None else folder / "metrics.jsonl", tracker)
    plateau = Plateau(settings.plateau)
    done = 0
    if (progressed := checkpoints.latest()) is not None:
        done = progressed.done
        log.resume(progressed.metrics)
        for trainee in trainees:
            trainee.restore(progressed.tensors[trainee.name])
    else:
        log.resume([])
        first = begin or (None if isinstance(source, TokenSource) else source.at(0))
        if first is not None:
            for trainee in trainees:
                trainee.begin(first)
    per_step = getattr(source, "batch", 1)
    with progress.task("Training", total=source.steps * per_step, unit="vectors") as advance:
        advance(done * per_step)
        for step in range(done, source.steps):
            batch = source.at(step)
            _step_all(trainees, batch, workers)
            advance(per_step)
            if (step + 1) % settings.log_every == 0 or step + 1 == source.steps:
                log.write([_line(trainee, step + 1) for trainee in trainees])
                if plateau.reached(log.lines):
                    break
                # Only between two log lines, or what has been summed up for the next were lost.
                checkpoints.offer(
                    step + 1, log.lines, lambda: {t.name: t.state() for t in trainees}
                )
    for trainee in trainees:
        trainee.modules.eval()
    log.close()
    return log.lines


def _line(trainee: Trainee, step: int) -> dict[str, float | int | str]:
    return {"trainee": trainee.name, "step": step, **trainee.report()}


def _step_all(trainees: Sequence[Trainee], batch: Any, workers: Workers | None) -> None:
    if workers is None:
        for trainee in trainees:
            trainee.step(batch)
        return
    for _ in workers.map(lambda trainee: trainee.step(batch), trainees):
        pass
