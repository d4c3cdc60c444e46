"""The log of a run: in memory, in `metrics.jsonl`, and in a tracker where one is asked for."""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.training.checkpoint import Metrics


@runtime_checkable
class Tracker(Protocol):
    """An experiment tracker's run."""

    def log(self, line: Mapping[str, float]) -> None:
        """Take one line of numbers."""
        ...

    def finish(self) -> None:
        """The run is over."""
        ...


def open_tracker(kind: str, project: str, config: Mapping[str, Any]) -> Tracker:
    """Start a run of wandb or trackio, which speak the same words.

    Raises:
        UserError: another tracker, or one that is not installed.
    """
    module = tracker_module(kind)
    return _Module(module, module.init(project=project, config=dict(config)))


def tracker_module(kind: str) -> Any:
    """The package of a tracker, imported; nothing is started.

    Raises:
        UserError: another tracker, or one that is not installed.
    """
    if kind not in ("wandb", "trackio"):
        raise UserError(f"There is no tracker {kind}; unweave knows wandb and trackio")
    try:
        return import_module(kind)
    except ImportError as error:
        raise UserError(f"{kind} is not installed: pip install {kind}") from error


class _Module:
    def __init__(self, module: Any, run: Any) -> None:
        self._module, self._run = module, run

    def log(self, line: Mapping[str, float]) -> None:
        self._module.log(dict(line))

    def finish(self) -> None:
        self._module.finish()


class MetricsLog:
    """Lines of numbers by trainee and step."""

    def __init__(self, path: Path | None, tracker: Tracker | None = None) -> None:
        self._path, self._tracker = path, tracker
        self.lines: Metrics = []

    def resume(self, lines: Metrics) -> None:
        """Begin with these lines; the file is cut back to them."""
        self.lines = list(lines)
        if self._path is not None:
            with new_file(self._path) as partial:
                partial.write_text("".join(_text(line) for line in self.lines))

    def write(self, lines: Sequence[dict[str, float | int | str]]) -> None:
        """Add lines."""
        self.lines += lines
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(_text(line) for line in lines)
        if self._tracker is not None:
            for line in lines:
                numbers = {k: v for k, v in line.items() if not isinstance(v, str)}
                name = line["trainee"]
                # trackio gives `step` a meaning of its own and renames a logged one.
                self._tracker.log({f"{name}/{k}": v for k, v in numbers.items() if k != "step"})

    def close(self) -> None:
        """Tell the tracker that the run is over."""
        if self._tracker is not None:
            self._tracker.finish()


def _text(line: Mapping[str, float | int | str]) -> str:
    # A checkpoint gives lines back with their keys sorted: the file must not tell.
    return json.dumps(line, sort_keys=True) + "\n"
