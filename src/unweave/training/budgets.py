"""Many dictionaries on one budget of steps: the next ones go to whoever still gets better.

Each trainee first has an equal share at full rate. Then, turn by turn, a few steps go to the one
whose unexplained variance has lately fallen most for what its steps cost. What it costs is counted
in multiplications, not seconds, so that the order is the same on every machine. Every trainee keeps
enough of the budget to bring its rate down at the end, at its own time.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.batches import VectorSource
from unweave.training.checkpoint import Checkpoints, Metrics
from unweave.training.metrics_log import MetricsLog
from unweave.training.trainee import Trainee


class BudgetSettings(BaseModel):
    """How steps are dealt out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    turn: PositiveInt = 20
    """Steps given at once; the log has one line a turn."""
    equal: float = Field(default=0.4, gt=0, le=1)
    """Share of the budget that is dealt out evenly beforehand."""
    over: PositiveInt = 3
    """Turns over which a fall is measured: fewer are noise, more are history."""
    checkpoint_seconds: float = Field(default=120.0, ge=0)
    """Unfinished training is saved this often."""


class Budgeted(NamedTuple):
    """A trainee and where its batches come from; made with as many steps as an equal share has."""

    trainee: Trainee
    source: VectorSource


def train_on_budget(
    runs: Sequence[Budgeted],
    steps: int,
    *,
    settings: BudgetSettings | None = None,
    folder: Path | None = None,
    progress: Progress = QUIET,
) -> Metrics:
    """Train all in place with so many steps together, and return the log.

    The rate is at its peak until a trainee's last turns, and comes down in the share of its own
    steps that its schedule says. With `folder` a cut run resumes to the same bits.

    Raises:
        UserError: two trainees of one name, or a budget that has no turn for each.
    """
    settings = settings or BudgetSettings()
    names = [run.trainee.name for run in runs]
    if len(set(names)) != len(names):
        raise UserError(f"Trainees must have names of their own, not {', '.join(names)}")
    if steps < 2 * settings.turn * len(runs):
        raise UserError(
            f"{steps} steps are too few to deal out: {len(runs)} dictionaries need at least "
            f"{2 * settings.turn * len(runs)} at {settings.turn} a turn"
        )
    log = MetricsLog(None if folder is None else folder / "metrics.jsonl")
    checkpoints = Checkpoints(
        None if folder is None else folder / "checkpoints", seconds=settings.checkpoint_seconds
    )
    _begin_or_resume(runs, checkpoints, log)
    with progress.task("Training", total=steps, unit="steps") as advance:
        advance(_spent(runs))
        while (turn := _next(runs, steps, settings, log.lines)) is not None:
            trainee, source = turn.run
            trainee.steps = turn.of
            for _ in range(turn.many):
                trainee.step(source.at(trainee.step_index % source.steps))
            line: dict[str, float | int | str] = {"trainee": trainee.name, "of": turn.of}
            line |= {"step": trainee.step_index, "falling": int(turn.falling)}
            log.write([{**line, **trainee.report()}])
            advance(turn.many)
            checkpoints.offer(
                _spent(runs), log.lines, lambda: {r.trainee.name: r.trainee.state() for r in runs}
            )
    for run in runs:
        run.trainee.finish()
    return log.lines


def _begin_or_resume(runs: Sequence[Budgeted], checkpoints: Checkpoints, log: MetricsLog) -> None:
    progressed = checkpoints.latest()
    log.resume([] if progressed is None else progressed.metrics)
    for run in runs:
        if progressed is None:
            run.trainee.begin(run.source.at(0))
        else:
            run.trainee.restore(progressed.tensors[run.trainee.name])


def _spent(runs: Sequence[Budgeted]) -> int:
    return sum(run.trainee.step_index for run in runs)


class _Turn(NamedTuple):
    run: Budgeted
    many: int
    of: int
    """Steps that the trainee has in all, as far as its schedule is to know."""
    falling: bool
    """Whether its rate comes down."""


def _next(
    runs: Sequence[Budgeted], steps: int, settings: BudgetSettings, log: Metrics
) -> _Turn | None:
    """Who steps next, by the log alone; None when the budget is spent."""
    peaks = [_at_peak(log, run.trainee.name) for run in runs]
    done = [int(lines[-1]["step"]) if lines else 0 for lines in peaks]
    turn = settings.turn
    whole = [_whole(run, n) for run, n in zip(runs, done, strict=True)]
    longer = [_whole(run, n + turn) for run, n in zip(runs, done, strict=True)]
    left = steps - sum(whole)
    able = [i for i in range(len(runs)) if longer[i] - whole[i] <= left]
    if able:
        waiting = [i for i in able if longer[i] <= settings.equal * steps / len(runs)]
        if waiting:
            best = min(waiting, key=lambda i: done[i])
        else:
            falls = [_fall(lines, settings.over) / _cost(runs[i]) for i, lines in enumerate(peaks)]
            best = max(able, key=lambda i: (falls[i], -done[i]))
        return _Turn(runs[best], turn, max(longer[best], steps // len(runs)), falling=False)
    for run, of in zip(runs, whole, strict=True):
        if (rest := of - run.trainee.step_index) > 0:
            return _Turn(run, min(turn, rest), of, falling=True)
    return None


def _at_peak(log: Metrics, name: str) -> Metrics:
    return [line for line in log if line["trainee"] == name and not line["falling"]]


def _whole(run: Budgeted, at_peak: int) -> int:
    """Steps in all of a trainee that takes so many before its rate comes down."""
    schedule = run.trainee.settings.schedule
    if schedule.shape == "constant":
        return at_peak
    return math.ceil(at_peak / max(schedule.decay_from, 0.1))


def _fall(lines: Metrics, over: int) -> float:
    """How much unexplained variance fell in a turn lately; infinite where that is not known."""
    if len(lines) < 2 * over:
        return math.inf
    values = [
        sum(found) / len(found)
        for line in lines[-2 * over :]
        if (found := [float(v) for k, v in line.items() if k.endswith(".fvu")])
    ]
    return (sum(values[:over]) - sum(values[over:])) / over**2


def _cost(run: Budgeted) -> float:
    """Multiplications of a step, up to a factor that all share."""
    specs = [dictionary.spec for dictionary in run.trainee.dictionaries.values()]
    return run.source.batch * sum(spec.d_in * spec.n_latents for spec in specs)
