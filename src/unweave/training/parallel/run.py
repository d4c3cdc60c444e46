"""The loop of many processes; `trainer.train` with what they share."""

from collections.abc import Sequence
from pathlib import Path

from unweave.activations.workers import Workers
from unweave.progress import QUIET, Progress
from unweave.training.batches import VectorBatch, VectorSource
from unweave.training.checkpoint import Metrics
from unweave.training.metrics_log import Tracker
from unweave.training.parallel.checkpoints import SharedCheckpoints
from unweave.training.parallel.grid import Grid
from unweave.training.parallel.sources import TokenShares, VectorShares, WindowShares
from unweave.training.trainee import Trainee
from unweave.training.trainer import Source, TrainSettings, train

Shared = VectorShares | TokenShares | WindowShares


def train_together(
    trainees: Sequence[Trainee],
    source: Source,
    grid: Grid,
    *,
    begin: VectorBatch | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    tracker: Tracker | None = None,
    workers: Workers | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train with every process of the grid; all of them must call it, and get the same log.

    Trainees are `SharedTrainee`s. A source that all processes hold is shared out row by row.
    `begin` are the first vectors, whole; without it a source of vectors gives its first batch.
    The process of rank 0 alone writes, logs and reports; `folder` must be one that all processes
    see. Alone this is `trainer.train`: `workers` are for that, as trainees that ask others have to
    do so in turn.
    """
    if not grid.many:
        return train(
            trainees,
            source,
            begin=begin,
            settings=settings,
            folder=folder,
            tracker=tracker,
            workers=workers,
            progress=progress,
        )
    settings = settings or TrainSettings()
    if not isinstance(source, Shared | VectorSource):
        raise TypeError("a source of vectors, or one that is shared out already")
    shared = source if isinstance(source, Shared) else VectorShares(source, grid.rows)
    first = begin
    if first is None and not isinstance(shared, TokenShares):
        first = shared.first()
    checkpoints = SharedCheckpoints(
        None if folder is None else folder / "checkpoints",
        grid,
        seconds=settings.checkpoint_seconds,
    )
    return train(
        trainees,
        shared,
        begin=first,
        settings=settings,
        folder=folder if grid.first else None,
        checkpoints=checkpoints,
        tracker=tracker if grid.first else None,
        progress=progress if grid.first else QUIET,
    )
