"""A grid or a guided search of settings over one set of vectors, resumable, with a law at the end.

Trials that share batch, tokens and seed are trained in one pass of the data. Every outcome is one
line of `outcomes.jsonl`; a sweep that was cut off does only what is missing. Settings are spread
over machines by an executor of `training.fanout`.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.fanout.executors import Executor, Here
from unweave.training.laws.scaling import Point, ScalingLaw, fit_scaling
from unweave.training.trial import Outcome, Trial, run_trials

OUTCOMES = "outcomes.jsonl"
"""Name of the file of outcomes in a sweep's folder."""
PLOT = "pareto.png"
"""Name of the picture."""


class SweepSettings(BaseModel):
    """What is varied."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    n_latents: tuple[PositiveInt, ...] = (256, 512, 1024)
    """Numbers of latents."""
    k: tuple[PositiveInt, ...] = (4, 8, 16, 32)
    """Active latents per vector."""
    lr: tuple[PositiveFloat, ...] = (4e-3, 8e-3, 1.6e-2)
    """Learning rates; a guided search draws from between the least and the greatest."""
    tokens: tuple[PositiveInt, ...] = (65_536,)
    """Vectors to train on."""
    batch: PositiveInt = 256
    """Vectors per step."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of a run over which the rate rises."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every setting."""
    guided: PositiveInt | None = None
    """When given, Optuna chooses so many trials instead of the whole grid."""
    together: PositiveInt = 8
    """Trials of a guided search that are asked for, and trained in one pass, at a time."""

    def grid(self) -> list[Trial]:
        """Every combination."""
        axes = itertools.product(self.tokens, self.seeds, self.n_latents, self.k, self.lr)
        return [self.trial(n, k, lr, tokens, seed) for tokens, seed, n, k, lr in axes if k <= n]

    def trial(self, n: int, k: int, lr: float, tokens: int, seed: int) -> Trial:
        """One setting."""
        return Trial(
            n_latents=n, k=k, lr=lr, tokens=tokens, batch=self.batch, warmup=self.warmup, seed=seed
        )


Work = Callable[[list[Trial]], list[Outcome]]
"""Trains trials that share a pass."""


def sweep(
    settings: SweepSettings,
    vectors: Float[Tensor, "rows width"],
    heldout: Float[Tensor, "held width"],
    *,
    folder: Path,
    executor: Executor | None = None,
    workers: Workers | None = None,
    progress: Progress = QUIET,
) -> list[Outcome]:
    """Carry out a sweep, or what is left of it, and return all its outcomes.

    With an executor, every pass is a piece of work of its own.

    Raises:
        UserError: the folder's outcomes cannot be read, or Optuna is asked for and absent.
    """
    log = OutcomeLog(folder / OUTCOMES)
    work = partial(_work, vectors=vectors, heldout=heldout, workers=workers, progress=progress)
    executor = executor or Here()
    if settings.guided is not None:
        return _guided(settings, settings.guided, log, executor, work)
    wanted = settings.grid()
    _carry_out([t for t in wanted if t not in log], log, executor, work)
    return [log[trial] for trial in wanted]


def refit(outcomes: Sequence[Outcome]) -> ScalingLaw:
    """The law of scaling fitted to the best run of every size.

    Raises:
        UserError: too few sizes.
    """
    best: dict[tuple[int, float, int], float] = defaultdict(lambda: float("inf"))
    for outcome in outcomes:
        trial = outcome.trial
        key = trial.n_latents, trial.k or outcome.l0, trial.tokens
        best[key] = min(best[key], outcome.fvu)
    return fit_scaling([Point(*key, fvu) for key, fvu in best.items() if 0 < fvu < float("inf")])


class OutcomeLog:
    """Outcomes by their settings, kept as lines of JSON."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, dict[str, Outcome]()
        if not path.is_file():
            return
        whole = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                outcome = Outcome.model_validate(json.loads(line))
            except ValueError as error:
                if line and not line.endswith("}"):
                    break  # the last line of a run that was cut off while writing
                raise UserError(f"{path} line {number} is no outcome of a sweep") from error
            self._found[outcome.trial.model_dump_json()] = outcome
            whole.append(line + "\n")
        with new_file(path) as partial_file:
            partial_file.write_text("".join(whole), encoding="utf-8")

    def __contains__(self, trial: Trial) -> bool:
        return trial.model_dump_json() in self._found

    def __getitem__(self, trial: Trial) -> Outcome:
        return self._found[trial.model_dump_json()]

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for outcome in outcomes:
                self._found[outcome.trial.model_dump_json()] = outcome
                file.write(json.dumps(outcome.model_dump()) + "\n")


def _work(
    trials: list[Trial],
    *,
    vectors: Tensor,
    heldout: Tensor,
    workers: Workers | None,
    progress: Progress,
) -> list[Outcome]:
    return list(run_trials(trials, vectors, heldout, workers=workers, progress=progress))


def _carry_out(trials: list[Trial], log: OutcomeLog, executor: Executor, work: Work) -> None:
    passes: dict[tuple[int, int, int], list[Trial]] = {}
    for trial in trials:
        passes.setdefault((trial.batch, trial.tokens, trial.seed), []).append(trial)
    for _, outcomes in executor.run(work, list(passes.values())):
        log.add(outcomes)


def _guided(
    settings: SweepSettings, count: int, log: OutcomeLog, executor: Executor, work: Work
) -> list[Outcome]:
    """Two goals, FVU and L0, by Optuna's TPE; a resumed search repeats its questions, which are
    answered from the log."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            "A guided sweep needs Optuna; install it with: pip install 'unweave[sweep]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=settings.seeds[0])
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        asked = [study.ask() for _ in range(min(settings.together, count - len(outcomes)))]
        trials = [
            settings.trial(
                question.suggest_categorical("n_latents", settings.n_latents),
                question.suggest_categorical("k", settings.k),
                question.suggest_float("lr", min(settings.lr), max(settings.lr), log=True),
                settings.tokens[-1],
                settings.seeds[0],
            )
            for question in asked
        ]
        _carry_out([t for t in dict.fromkeys(trials) if t not in log], log, executor, work)
        for question, trial in zip(asked, trials, strict=True):
            study.tell(question, [log[trial].fvu, log[trial].l0])
            outcomes.append(log[trial])
    return outcomes
