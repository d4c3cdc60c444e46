"""Does a map depend on what the network has learned? (Adebayo et al. 2018)

Weights are shuffled from the top down, each block beside those above it (cascading) or alone
(independent), and maps of the same predictions are compared with the original ones by Spearman's
rank correlation, of the values and of their sizes. A map that stays the same once all is shuffled
explains the text's form and not the network.

The floor is the correlation of maps of different rows in the untouched network: what all maps of a
method share whatever is explained, such as a liking for the last tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unweave.artifact.records import Record
from unweave.artifact.scores import Interval
from unweave.progress import QUIET, Progress
from unweave.subject import Subject
from unweave.validate.attribution_maps.maps import CONTROLS, MAPS, Map
from unweave.validate.attribution_maps.randomise import shuffled, stages
from unweave.validate.attribution_maps.ranks import spearman
from unweave.validate.attribution_maps.scores import Asked, ask, predicted, token_score
from unweave.validate.bootstrap import BootstrapSettings, mean_interval

Way = Literal["cascading", "independent"]
WAYS: tuple[Way, ...] = ("cascading", "independent")


class SanitySettings(BaseModel):
    """Settings of the check."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ways: tuple[Way, ...] = WAYS
    """Whether shuffled blocks add up from the top, or one is shuffled at a time."""
    stages: tuple[str, ...] = ()
    """Stages to look at, from the top down; all when not given. In between, a cascade shuffles all
    the same."""
    most: float = Field(default=0.5, gt=0, lt=1)
    """Rank correlation of sizes that a map may keep at most when all is shuffled."""
    seed: int = 0
    """Seed of the shuffling."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """Intervals over rows."""


class Kept(Record):
    """What is left of the maps at one stage: means over rows with their intervals."""

    way: Way
    stage: str
    """The block shuffled last."""
    signed: Interval
    """Rank correlation with the original map."""
    sizes: Interval
    """The same of absolute values."""


class Verdict(Record):
    """One method's check."""

    kept: list[Kept]
    """Stage by stage."""
    floor: Interval
    """Correlation of sizes between maps of different rows, nothing shuffled."""
    passes: bool
    """Whether with all shuffled the sizes keep surely less than `most`."""
    control: bool
    """Whether it is a control, which must not pass."""


def sanity(
    subject: Subject,
    rows: Int[Tensor, "rows pos"],
    settings: SanitySettings | None = None,
    *,
    maps: Mapping[str, Map] = MAPS,
    progress: Progress = QUIET,
) -> dict[str, Verdict]:
    """Check the methods and the controls on the network's own predictions after `rows`.

    What is explained stays the token that the untouched network predicts.
    """
    settings = settings or SanitySettings()
    methods = {**maps, **CONTROLS}
    token = predicted(subject, rows)
    plan = list(_plan(subject, settings))
    kept: dict[str, list[Kept]] = {name: [] for name in methods}
    with progress.task("Shuffling weights", total=len(plan) + 1, unit="networks") as advance:
        original = _maps(subject, rows, token, methods)
        advance(1)
        for way, stage, parts in plan:
            other = _maps(shuffled(subject, parts, seed=settings.seed), rows, token, methods)
            for name in methods:
                kept[name].append(_kept(way, stage, original[name], other[name], settings))
            advance(1)
    return {
        name: _verdict(kept[name], original[name], name in CONTROLS, settings) for name in methods
    }


def _plan(subject: Subject, settings: SanitySettings) -> Iterator[tuple[Way, str, list[str]]]:
    """Every way and stage, and what is shuffled there; a cascade always ends with everything."""
    all_stages = stages(subject)
    wanted = settings.stages or tuple(all_stages)
    for way in settings.ways:
        for index, stage in enumerate(all_stages):
            last = way == "cascading" and index == len(all_stages) - 1
            if stage in wanted or last:
                parts = all_stages[: index + 1] if way == "cascading" else [stage]
                yield way, stage, parts


def _maps(
    subject: Subject, rows: Tensor, token: Tensor, methods: Mapping[str, Map]
) -> dict[str, Tensor]:
    asked: Asked = ask(subject, rows, token_score(subject, rows, token))
    # Position 0 is the same in every row, and not explained.
    return {name: method(subject, asked)[:, 1:] for name, method in methods.items()}


def _kept(
    way: Way,
    stage: str,
    one: Float[Tensor, "rows items"],
    other: Float[Tensor, "rows items"],
    settings: SanitySettings,
) -> Kept:
    return Kept(
        way=way,
        stage=stage,
        signed=_mean(spearman(one, other).nan_to_num(), settings),
        sizes=_mean(spearman(one.abs(), other.abs()).nan_to_num(), settings),
    )


def _verdict(
    kept: Sequence[Kept], maps: Float[Tensor, "rows items"], control: bool, settings: SanitySettings
) -> Verdict:
    sizes = maps.abs()
    ends = [one.sizes.high for one in kept if one.way == "cascading"]
    return Verdict(
        kept=list(kept),
        floor=_mean(spearman(sizes, sizes.roll(1, 0)).nan_to_num(), settings),
        passes=bool(ends) and ends[-1] is not None and ends[-1] < settings.most,
        control=control,
    )


def _mean(values: Float[Tensor, " rows"], settings: SanitySettings) -> Interval:
    found = mean_interval(values.double().numpy(), settings.bootstrap)
    return Interval(value=found.value, low=found.low, high=found.high)
