"""Which labelled sets a protocol runs on, and each of them done once."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from unweave.artifact.atomic import Json
from unweave.errors import UserError
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.hub_sets import Published
from unweave.validate.labelled import LabelledSet, load_sets
from unweave.validate.protocols.protocol import Bench, Refused


class Chosen(NamedTuple):
    """A data set with what of it is used."""

    data: LabelledSet
    classes: tuple[str, ...]
    """Labels used."""
    pairs: tuple[tuple[str, str], ...]
    """For SCR: labels crossed with the cue; none are named for one's own sets."""
    cues: tuple[str, str] | None
    """For SCR: the two values of the cue."""


def chosen_sets(
    bench: Bench, published: Sequence[Published], *, most: int, fits: Callable[[LabelledSet], bool]
) -> list[Chosen]:
    """The sets in the bench's folder that a protocol can use, or the published ones.

    Of one's own sets the `most` labels with most examples are used, as published sets have at most
    that many.
    """
    if bench.data is None:
        loaded: dict[Callable[[], LabelledSet], LabelledSet] = {}
        for one in published:
            if one.load not in loaded:
                loaded[one.load] = _loaded(one)
        return [
            Chosen(
                loaded[one.load]._replace(name=one.name),
                one.classes or tuple(loaded[one.load].labels), one.pairs, one.cues,
            )
            for one in published
        ]  # fmt: skip
    return [
        Chosen(found, tuple(found.labels[:most]), (), None)
        for found in load_sets(bench.data)
        if fits(found)
    ]


def _loaded(one: Published) -> LabelledSet:
    try:
        return one.load()
    except UserError as error:  # the other protocols may not need the hub
        raise Refused(str(error)) from error


def each_set(
    bench: Bench,
    name: str,
    work: Callable[[Chosen], Json],
    sets: Sequence[Chosen],
    settings: BaseModel,
    why_none: str,
) -> dict[str, Json]:
    """What `work` finds on each set; what has been found before is not computed again.

    Raises:
        Refused: there is no set; `why_none` says what one would need.
    """
    if not sets:
        raise Refused(why_none)
    tasks = {
        one.data.name: Task(
            {
                "settings": settings.model_dump(mode="json"), "seed": bench.seed,
                "share": bench.share, "data": one.data.sha256, "classes": list(one.classes),
            },
            one,
        )
        for one in sets
    }  # fmt: skip
    return fan_out(
        work, tasks, folder=bench.store / name, executor=Here(), title=name,
        progress=bench.progress,
    )  # fmt: skip


def shared(count: int, share: float, least: int = 8) -> int:
    """A share of a published number of examples, at least a few."""
    return max(least, round(count * share))


def averaged(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each number over the data sets that have it."""
    names = dict.fromkeys(name for one in found for name in one)
    return {
        name: sum(one[name] for one in found if name in one) / sum(name in one for one in found)
        for name in names
    }


def ordered(means: dict[str, float], first: Sequence[str]) -> dict[str, float]:
    """The numbers, those of `first` first; the rest by name, and by the number in their name."""

    def place(name: str) -> tuple[int, list[tuple[str, int]]]:
        parts = re.findall(r"(\D+)(\d*)", name)
        told = [(text, int(digits or 0)) for text, digits in parts]
        return (first.index(name) if name in first else len(first)), told

    return {name: means[name] for name in sorted(means, key=place)}
