"""Tasks spread over processes: a killed worker costs its attempt and nothing else."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from unweave.errors import UserError
from unweave.training.fanout.executors import Here, Processes
from unweave.training.fanout.tasks import Task, fan_out


def square(item: tuple[int, str, str]) -> dict[str, int]:
    """The square of a number; what it is told to do first, it does once or always."""
    number, how, folder = item
    marks = Path(folder)
    (marks / f"{number}-{time.monotonic_ns()}").touch()
    tried = len(list(marks.glob(f"{number}-*")))
    if (how == "killed once" and tried == 1) or how == "always killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "refuses":
        raise UserError("no square of this number")
    if how == "breaks":
        raise ZeroDivisionError("a defect")
    return {"square": number * number}


def tasks(marks: Path, **how: str) -> dict[str, Task]:
    marks.mkdir(exist_ok=True)
    return {
        f"n{number}": Task({"number": number}, (number, how.get(f"n{number}", ""), str(marks)))
        for number in range(4)
    }


SQUARES = {f"n{number}": {"square": number * number} for number in range(4)}


def attempts(marks: Path) -> list[int]:
    return [len(list(marks.glob(f"{number}-*"))) for number in range(4)]


def test_a_killed_worker_is_replaced_and_its_task_done_again(tmp_path: Path) -> None:
    marks, folder = tmp_path / "marks", tmp_path / "out"
    asked = tasks(marks, n1="killed once")
    assert fan_out(square, asked, folder=folder, executor=Processes(2)) == SQUARES
    assert attempts(marks) == [1, 2, 1, 1]
    assert fan_out(square, asked, folder=folder, executor=Here()) == SQUARES
    assert attempts(marks) == [1, 2, 1, 1], "what is done is not done again"


def test_a_task_that_kills_every_worker_is_given_up_and_the_others_are_kept(tmp_path: Path) -> None:
    marks, folder = tmp_path / "marks", tmp_path / "out"
    with pytest.raises(UserError, match="died 2 times"):
        fan_out(
            square,
            tasks(marks, n3="always killed"),
            folder=folder,
            executor=Processes(1, retries=1),
        )
    assert sorted(path.stem for path in folder.iterdir()) == ["n0", "n1", "n2"]
    assert fan_out(square, tasks(marks), folder=folder, executor=Here()) == SQUARES
    assert attempts(marks) == [1, 1, 1, 3]


def test_what_a_task_raises_is_raised_here_and_not_tried_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with pytest.raises(UserError, match="no square"):
        fan_out(square, tasks(marks, n0="refuses"), folder=tmp_path / "a", executor=Processes(1))
    assert attempts(marks)[0] == 1
    item = tasks(marks, n0="breaks")["n0"].item
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a defect"):
        list(Processes(1).run(square, [item]))


def test_another_task_of_the_same_name_is_refused(tmp_path: Path) -> None:
    asked = tasks(tmp_path / "marks")
    fan_out(square, asked, folder=tmp_path, executor=Here())
    with pytest.raises(UserError, match="another task"):
        fan_out(square, {"n0": Task({"number": 9}, asked["n0"].item)}, folder=tmp_path)
    with pytest.raises(UserError, match="file of that name"):
        fan_out(square, {"a/b": asked["n0"]}, folder=tmp_path, executor=Here())
    assert json.loads((tmp_path / "n2.json").read_text())["result"] == {"square": 4}


@pytest.mark.slow
def test_ray_does_the_same_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *_path()]))
    from unweave.training.fanout.cluster import RayExecutor

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        marks = tmp_path / "marks"
        asked = tasks(marks, n1="killed once")
        assert fan_out(square, asked, folder=tmp_path / "out", executor=RayExecutor(ray)) == SQUARES
        assert attempts(marks) == [1, 2, 1, 1]
    finally:
        ray.shutdown()


def _path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
