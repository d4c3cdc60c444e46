"""Stopping early: when the best loss of the last lines is hardly better than that before them."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from unweave.training.checkpoint import Metrics


class PlateauSettings(BaseModel):
    """When nothing gets better any more."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    lines: PositiveInt = 10
    """Lines of the log that are compared with those before."""
    gain: float = Field(default=0.005, gt=0, lt=1)
    """Relative improvement of the watched number that counts."""
    watch: str = "fvu"
    """Which number, of every dictionary of every trainee."""


class Plateau:
    """Watches the log of a run."""

    def __init__(self, settings: PlateauSettings | None) -> None:
        self._settings = settings

    def reached(self, log: Metrics) -> bool:
        """Whether every watched series has stopped getting better."""
        settings = self._settings
        if settings is None:
            return False
        series: dict[str, list[float]] = {}
        for line in log:
            for key, value in line.items():
                if key.endswith(f".{settings.watch}") and not isinstance(value, str):
                    series.setdefault(f"{line['trainee']}/{key}", []).append(value)
        return bool(series) and all(
            len(values) > settings.lines
            and min(values[-settings.lines :])
            > (1 - settings.gain) * min(values[: -settings.lines])
            for values in series.values()
        )
