"""Named tasks, each of which is done once: what has been finished lies on disk and is not repeated.

FOLDER/NAME.json     what was asked for and what came of it, written when the task is done
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unweave.artifact.atomic import Json, sweep, write_json
from unweave.errors import UserError
from unweave.progress import QUIET, Progress
from unweave.training.fanout.executors import Executor, Processes


class Task(NamedTuple):
    """One piece of work."""

    asked: Json
    """What makes it this task and no other, kept beside its result."""
    item: Any
    """What the work is given; picklable where it is done elsewhere."""


def fan_out(
    work: Callable[[Any], Json],
    tasks: Mapping[str, Task],
    *,
    folder: Path,
    executor: Executor | None = None,
    title: str = "Tasks",
    progress: Progress = QUIET,
) -> dict[str, Json]:
    """Do what is not done yet and return every task's result, in the order of the tasks.

    One process for each core when no executor is given. Results are those of JSON.

    Raises:
        UserError: a name that cannot be a file's, or a folder with the result of another task of
            that name.
    """
    found = {n: done for n in tasks if (done := _done(folder, n, tasks[n].asked)) is not None}
    left = [name for name in tasks if name not in found]
    if folder.is_dir():
        sweep(folder)
    with progress.task(title, total=len(tasks), unit="tasks") as advance:
        advance(len(found))
        if left:
            items = [tasks[name].item for name in left]
            for place, result in (executor or Processes()).run(work, items):
                name = left[place]
                write_json(_file(folder, name), {"asked": tasks[name].asked, "result": result})
                found[name] = _done(folder, name, tasks[name].asked)
                advance(1)
    return {name: found[name]["result"] for name in tasks}


def _file(folder: Path, name: str) -> Path:
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"A task cannot be called {name!r}: its result is a file of that name")
    return folder / f"{name}.json"


def _done(folder: Path, name: str, asked: Json) -> Any:
    path = _file(folder, name)
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["asked"] != json.loads(json.dumps(asked)):
        raise UserError(
            f"{path} is the result of another task of that name: remove it or take another folder"
        )
    return record
