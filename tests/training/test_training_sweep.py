"""Sweeps: one pass for what shares it, nothing done twice, and a law and a front at the end."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unweave.training.sweep as module
from unweave.errors import UserError
from unweave.training.fanout.cluster import RayExecutor, ray_executor
from unweave.training.pareto import code_bits, draw_pareto, pareto_front
from unweave.training.sweep import OUTCOMES, SweepSettings, refit, sweep
from unweave.training.trial import Outcome, Trial, run_trials

GRID = SweepSettings(n_latents=(16, 32), k=(2, 4), lr=(4e-3, 1.6e-2), tokens=(1024, 2048), batch=64)


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.relu(torch.randn(1200, 24, generator=generator) - 1)
    x = rows @ torch.randn(24, 8, generator=generator)
    return x[:1000], x[1000:]


Data = tuple[torch.Tensor, torch.Tensor]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials every pass was given from now on."""
    passes: list[int] = []

    def spy(trials: list[Trial], *rest: Any, **more: Any) -> Any:
        passes.append(len(trials))
        return run_trials(trials, *rest, **more)

    monkeypatch.setattr(module, "run_trials", spy)
    return passes


def test_a_grid_takes_one_pass_per_length_and_resumes(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = counted(monkeypatch)
    whole = sweep(GRID, *data, folder=tmp_path / "a")
    assert passes == [8, 8]
    assert len(whole) == 16
    assert [o.trial for o in whole] == GRID.grid()
    lines = (tmp_path / "a" / OUTCOMES).read_text().splitlines()
    half = "\n".join(lines[:5]) + '\n{"trial": {"n_la'
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / OUTCOMES).write_text(half)
    passes.clear()
    again = sweep(GRID, *data, folder=tmp_path / "b")
    assert sum(passes) == 11
    assert [(o.fvu, o.l0, o.dead) for o in again] == [(o.fvu, o.l0, o.dead) for o in whole]
    passes.clear()
    sweep(GRID, *data, folder=tmp_path / "b")
    assert passes == []
    assert len((tmp_path / "b" / OUTCOMES).read_text().splitlines()) == 16


def test_a_file_of_something_else_is_refused(data: Data, tmp_path: Path) -> None:
    (tmp_path / OUTCOMES).write_text('{"surprise": 1}\n')
    with pytest.raises(UserError, match="line 1 is no outcome"):
        sweep(GRID, *data, folder=tmp_path)


def test_company_changes_nothing(data: Data) -> None:
    trials = GRID.grid()[:3]
    together = [o.fvu for o in run_trials(trials, *data)]
    alone = [o.fvu for trial in trials for o in run_trials([trial], *data)]
    assert together == alone
    other = trials[0].model_copy(update={"seed": 1})
    assert next(iter(run_trials([other], *data))).fvu != alone[0]


class Elsewhere:
    """Ray's `put`, `remote`, `wait` and `get`, carried out here when a result is asked for."""

    def __init__(self) -> None:
        self.kept: list[object] = []
        self.started, self.at_first_get = 0, 0

    def put(self, value: object) -> object:
        self.kept.append(value)
        return ("kept", len(self.kept) - 1)

    def remote(self, function: Callable) -> Any:
        outer = self

        class Call:
            def remote(self, shared: tuple[str, int], piece: list[Trial]) -> object:
                outer.started += 1
                return lambda: function(outer.kept[shared[1]], piece)

        return Call()

    def wait(self, references: list) -> tuple[list, list]:
        return references[-1:], references[:-1]  # the last is done first

    def get(self, reference: Any) -> list[Outcome]:
        self.at_first_get = self.at_first_get or self.started
        return reference()


def test_passes_spread_over_machines_give_the_same_outcomes(data: Data, tmp_path: Path) -> None:
    ray = Elsewhere()
    there = sweep(GRID, *data, folder=tmp_path / "there", executor=RayExecutor(ray))
    here = sweep(GRID, *data, folder=tmp_path / "here")
    assert [(o.trial, o.fvu) for o in there] == [(o.trial, o.fvu) for o in here]
    assert len(ray.kept) == 1, "the vectors are sent once"
    assert ray.at_first_get == ray.started == 2, "all are under way before one is waited for"


def test_a_guided_search_resumes_with_the_same_questions(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    guided = GRID.model_copy(update={"guided": 8, "together": 4, "tokens": (1024,)})
    passes = counted(monkeypatch)
    whole = sweep(guided, *data, folder=tmp_path / "a")
    assert len(whole) == 8
    assert all(4e-3 <= o.trial.lr <= 1.6e-2 for o in whole)
    kept = (tmp_path / "a" / OUTCOMES).read_text().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / OUTCOMES).write_text("".join(kept[:4]))
    passes.clear()
    again = sweep(guided, *data, folder=tmp_path / "b")
    assert [o.trial for o in again] == [o.trial for o in whole]
    assert sum(passes) == 4


@pytest.mark.parametrize(
    ("missing", "extra"), [("optuna", "sweep"), ("ray", "ray"), ("matplotlib", "sweep")]
)
def test_what_is_not_installed_is_named(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, extra: str
) -> None:
    real = builtins.__import__

    def fake(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", fake)
    ask = {
        "optuna": lambda: sweep(GRID.model_copy(update={"guided": 2}), *data, folder=tmp_path),
        "ray": ray_executor,
        "matplotlib": lambda: draw_pareto([], tmp_path / "x.png"),
    }
    with pytest.raises(UserError, match=rf"unweave\[{extra}\]"):
        ask[missing]()


def outcome(n: int, k: int, fvu: float, lr: float = 1e-3, tokens: int = 65_536) -> Outcome:
    trial = Trial(n_latents=n, k=k, lr=lr, tokens=tokens)
    return Outcome(trial=trial, fvu=fvu, l0=k, dead=0.0, flops=1.0, seconds=1.0)


def test_the_front_holds_what_nothing_beats() -> None:
    cheap, good, beaten = outcome(64, 2, 0.5), outcome(64, 8, 0.2), outcome(256, 8, 0.3)
    assert code_bits(good) < code_bits(beaten)
    assert pareto_front([beaten, good, cheap]) == [cheap, good]
    assert pareto_front([outcome(64, 2, float("nan")), cheap]) == [cheap]
    # C(64, 2) = 2016 pairs, and two strengths.
    assert code_bits(cheap) == pytest.approx(10.977 + 12, abs=1e-3)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_pareto([outcome(64, 2, 0.5), outcome(128, 8, 0.2)], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_the_law_is_refitted_to_the_best_run_of_each_size() -> None:
    pytest.importorskip("scipy")
    runs = [
        outcome(n, k, 0.3 * (n / 1024) ** -0.2 * (k / 16) ** -0.4 * miss, lr)
        for n in (256, 512, 1024)
        for k in (4, 8, 16)
        for lr, miss in ((1e-3, 1.5), (2e-3, 1.0))
    ]
    law = refit(runs)
    assert law(512, 8, 65_536) == pytest.approx(0.3 * 0.5**-0.2 * 0.5**-0.4, rel=0.02)
    assert json.loads(law.model_dump_json())["coefficients"]
