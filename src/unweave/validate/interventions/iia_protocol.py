"""Interchange-intervention accuracy as a protocol: variables at the places where they can be read.

What needs no dictionary is found once for each variable and place, and kept apart from what does,
so that several dictionaries at one site may share a store.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

from unweave.artifact.hashing import sha256_of_json
from unweave.artifact.scores import Number
from unweave.training.fanout.executors import Here
from unweave.training.fanout.tasks import Task, fan_out
from unweave.validate.interventions.iia import (
    Count,
    Halves,
    IIASettings,
    answered,
    coder_counts,
    halved,
    nothing_there,
    site_counts,
    site_of,
)
from unweave.validate.interventions.interchange import Counterfactual
from unweave.validate.interventions.pair_tasks import our_tasks, tasks_in
from unweave.validate.interventions.pairs import fitting
from unweave.validate.protocols.data_sets import shared
from unweave.validate.protocols.protocol import Bench, Outcome, Refused

CONTROLS = ("random_latents", "twin", "random_as_learned", "twin_learned", "random", "nothing")
"""What must come out bad: as many random latents, random directions, random subspaces, nothing."""
FIRST = ("latents", "neurons", "everything", "latents_all", "latents_learned", "das")
"""The headline, in this order."""


class Variable(NamedTuple):
    """A variable at one place, ready for one subject."""

    name: str
    """What it is called in results."""
    pairs: tuple[Counterfactual, ...]
    """More than are used."""
    unfit: int
    """Pairs that could not be put to the subject."""


def iia(bench: Bench, settings: IIASettings | None = None) -> Outcome:
    """Whether a dictionary's latents carry what two prompts differ in: pairs of the bench's folder,
    or capitals and indirect objects of ours where it has none.
    """
    settings = settings or IIASettings()
    # Of fewer, not even a subject that answers most of them would keep enough.
    drawn = max(shared(settings.drawn, bench.share), 3 * settings.fewest)
    tasks = tasks_in(bench.data, drawn, seed=bench.seed) if bench.data is not None else []
    tasks = tasks or our_tasks(drawn, seed=bench.seed)
    variables = []
    for task in tasks:
        found = fitting(bench.subject, task.pairs[:drawn])
        variables.append(Variable(task.name, found.pairs, found.unfit))
    return iia_on(bench, variables, settings)


def iia_on(
    bench: Bench, variables: Sequence[Variable], settings: IIASettings | None = None
) -> Outcome:
    """The accuracy over given variables; what has been done before is not done again.

    Raises:
        Refused: the coder does not write the one site that it reads, or for no variable are there
            both a subject that knows it and a place that holds it.
    """
    settings = settings or IIASettings()
    most = max(settings.fewest, shared(settings.pairs, bench.share))
    settings = settings.model_copy(update={"pairs": most})
    site_of(bench.dictionary)
    sites = _sites(bench, variables, settings)
    there = {name: one for name, one in sites.items() if "refused" not in one}
    if not there:
        reasons = "; ".join(f"{name}: {one['refused']}" for name, one in sites.items())
        raise Refused(f"No variable can be exchanged in {bench.subject.name} here ({reasons})")
    through = _coders(bench, [v for v in variables if v.name in there], there, settings)
    counts = {
        name: {
            way: Count(*found)
            for way, found in (there[name]["counts"] | through[name]["counts"]).items()
        }
        for name in there
    }
    return _outcome(bench, settings, counts, sites, through)


def _sites(
    bench: Bench, variables: Sequence[Variable], settings: IIASettings
) -> dict[str, dict[str, Any]]:
    def work(variable: Variable) -> dict[str, Any]:
        facts = {"drawn": len(variable.pairs), "unfit": variable.unfit}
        try:
            kept = answered(bench.subject, variable.pairs, settings)
        except Refused as reason:
            return {"refused": str(reason), **facts}
        counts = site_counts(
            bench.subject, site_of(bench.dictionary), _halves(bench, variable, kept), settings,
            seed=bench.seed,
        )  # fmt: skip
        found = {"counts": {name: list(one) for name, one in counts.items()}, "kept": kept, **facts}
        why = nothing_there(counts)
        return found if why is None else {"refused": why, **found}

    return _done_once(bench, "site", variables, settings, work, {})


def _coders(
    bench: Bench,
    variables: Sequence[Variable],
    sites: Mapping[str, dict[str, Any]],
    settings: IIASettings,
) -> dict[str, dict[str, Any]]:
    def work(variable: Variable) -> dict[str, Any]:
        halves = _halves(bench, variable, sites[variable.name]["kept"])
        counts, sizes = coder_counts(
            bench.subject, bench.dictionary, halves, settings, seed=bench.seed
        )
        return {"counts": {name: list(one) for name, one in counts.items()}, "exchanged": sizes}

    one = bench.dictionary
    return _done_once(bench, one.name, variables, settings, work, {"dictionary": one.name})


def _halves(bench: Bench, variable: Variable, kept: Sequence[int]) -> Halves:
    pairs = [variable.pairs[at] for at in kept]
    return halved(bench.subject, site_of(bench.dictionary), pairs, seed=bench.seed)


def _done_once(
    bench: Bench,
    part: str,
    variables: Sequence[Variable],
    settings: IIASettings,
    work: Any,
    more: dict[str, str],
) -> dict[str, dict[str, Any]]:
    asked = {
        variable.name: Task(
            {
                "settings": settings.model_dump(mode="json"), "seed": bench.seed,
                "subject": bench.subject.fingerprint, "dtype": str(bench.subject.dtype),
                "site": site_of(bench.dictionary), **more,
                "pairs": sha256_of_json([list(pair) for pair in variable.pairs]),
            },
            variable,
        )
        for variable in variables
    }  # fmt: skip
    found = fan_out(
        work, asked, folder=bench.store / "iia" / part, executor=Here(), title=f"iia: {part}",
        progress=bench.progress,
    )  # fmt: skip
    return cast(dict[str, dict[str, Any]], found)


def _outcome(
    bench: Bench,
    settings: IIASettings,
    counts: Mapping[str, Mapping[str, Count]],
    sites: Mapping[str, dict[str, Any]],
    through: Mapping[str, dict[str, Any]],
) -> Outcome:
    """Shares over the test pairs of all variables together."""
    ways = next(iter(counts.values()))
    numbers = {
        way: _number([found[way] for found in counts.values()])
        for way in (*FIRST, *(way for way in ways if way not in FIRST))
    }
    return Outcome(
        protocol="iia",
        numbers={f"iia_{way}": one for way, one in numbers.items() if way not in CONTROLS},
        controls={f"iia_{way}": numbers[way] for way in CONTROLS},
        details={
            "settings": settings.model_dump(mode="json"), "seed": bench.seed,
            "subject": bench.subject.name, "dtype": str(bench.subject.dtype),
            "by_variable": {
                name: one | through.get(name, {}) | {"counts": _all(one, through.get(name, {}))}
                for name, one in sites.items()
            },
        },
    )  # fmt: skip


def _all(*parts: Mapping[str, Any]) -> dict[str, list[int]]:
    return {way: count for part in parts for way, count in part.get("counts", {}).items()}


def _number(counts: Sequence[Count]) -> Number:
    share = Count(sum(c.hits for c in counts), sum(c.trials for c in counts)).share
    return Number(value=share.value, low=share.low, high=share.high, unit="share")
