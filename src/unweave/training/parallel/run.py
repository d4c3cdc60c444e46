"""The loop of many processes; `trainer.train` with what they share."""

from collections.abc import Sequence
from pathlib import Path

from unweave.progress import QUIET, Progress
from unweave.training.batches import VectorBatch, VectorSource
from unweave.training.checkpoint import Metrics
from unweave.training.metrics_log import Tracker
from unweave.training.parallel.checkpoints import SharedCheckpoints
from unweave.training.parallel.grid import Grid
from unweave.training.parallel.sources import TokenShares, VectorShares, WindowShares
from unweave.training.parallel.trainee import SharedTrainee
from unweave.training.trainer import TrainSettings, train

Shared = VectorShares | TokenShares | WindowShares


def train_together(
    trainees: Sequence[SharedTrainee],
    source: Shared | VectorSource,
    grid: Grid,
    *,
    begin: VectorBatch | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    tracker: Tracker | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train with every process of the grid; all of them must call it, and get the same log.

    A source that all processes hold is shared out row by row. `begin` are the first vectors, whole;
    without it a source of vectors gives its first batch. The process of rank 0 alone writes, logs
    and reports; `folder` must be one that all processes see.
    """
    settings = settings or TrainSettings()
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
