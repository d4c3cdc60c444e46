"""Spurious correlation removal (SHIFT, Marks et al. 2024, 2403.19647; SAEBench, 2503.09532).

A probe is trained where label and cue always go together, and so learns both. The latents that
matter most to a probe of the cue are taken out, and the biased probe is asked for the label:

    score = (accuracy with the cue taken out - accuracy as it was) / (clean probe's - as it was)

Direction 1 takes out the cue and asks for the label, direction 2 the other way about; reported is
the one in which the biased probe starts worse. Pairs of which a clean probe cannot tell label or
cue are left out of the mean: their scores divide noise by noise. Published runs take the first
texts of each kind whatever the seed, and judge each probe's epochs on the test texts; so do we.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.validate.hub_sets import CROSSED
from unweave.validate.labelled import Example
from unweave.validate.protocols.ablation import AblationSettings, effects, fitting, strongest
from unweave.validate.protocols.controls import twin_at
from unweave.validate.protocols.data_sets import (
    Chosen,
    averaged,
    chosen_sets,
    each_set,
    ordered,
    shared,
)
from unweave.validate.protocols.pooling import Pooled, pool, unit_directions
from unweave.validate.protocols.probes import Probe, Task, told_apart, trained_probe
from unweave.validate.protocols.protocol import Bench, Outcome, Refused

CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Label and cue: first value or second."""
PAIRS = 4
"""Most pairs of labels of one data set."""


class Crossed(NamedTuple):
    """Pooled texts of the four corners, one after the other."""

    pooled: list[Pooled]
    """By the dictionary, and by its random twin."""
    counts: tuple[int, ...]
    """Texts of each corner."""


def scr(bench: Bench, settings: AblationSettings | None = None) -> Outcome:
    """Scores averaged over pairs of labels of all data sets."""
    settings = settings or AblationSettings()
    sets = chosen_sets(bench, CROSSED, most=10**9, fits=lambda one: bool(one.crossed))
    sets = [one for one in sets if pairs_of(one, bench, settings)]
    found = each_set(
        bench, "scr", lambda one: _on_set(bench, one, settings), sets, settings,
        "SCR needs texts with a label and a cue that crosses it (columns label and cue), every"
        " combination of two values of each often enough, and the folder given has none",
    )  # fmt: skip
    by_set = cast(Mapping[str, Mapping[str, dict[str, float]]], found)
    scored = [scores for pairs in by_set.values() for scores in pairs.values()]
    told = [scores for scores in scored if least_told(scores) >= settings.told]
    if not told:
        raise Refused(
            f"No probe tells label and cue apart in {settings.told:.0%} of the test texts of any"
            " set, so there is no correlation to remove"
        )
    first = [f"scr_metric_threshold_{n}" for n in settings.n]
    first += [f"{bad}{name}" for bad in ("random_latents_", "random_") for name in first]
    means = ordered(averaged(told), first)
    bad = ("random_",)
    return Outcome(
        protocol="scr",
        numbers={n: _share(value) for n, value in means.items() if not n.startswith(bad)},
        controls={n: _share(value) for n, value in means.items() if n.startswith(bad)},
        details={
            "settings": settings.model_dump(mode="json"), "share": bench.share,
            "by_set_and_pair": found, "pairs": len(scored), "pairs_told_apart": len(told),
        },
    )  # fmt: skip


def least_told(scores: Mapping[str, float]) -> float:
    """How well the clean probes tell the harder one of label and cue."""
    return min(scores["accuracy_label"], scores["accuracy_cue"])


def _share(value: float) -> Number:
    return Number(value=value, unit="share")


def corners(
    examples: Sequence[Example], labels: tuple[str, str], cues: tuple[str, str]
) -> list[list[str]]:
    """Texts of each corner in the order of the file."""
    return [
        [e.text for e in examples if e.label == labels[label] and e.cue == cues[cue]]
        for label, cue in CORNERS
    ]


def corner_size(texts: Sequence[Sequence[str]], wanted: int) -> int:
    """Texts of each corner that are used; the biased probe takes twice as many of its two."""
    first, *_, last = texts
    return min(wanted, len(first) // 2, len(last) // 2, *(len(corner) for corner in texts))


def pairs_of(
    one: Chosen, bench: Bench, settings: AblationSettings
) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """The published pairs of labels, or of one's own set neighbours by frequency that do."""
    cues = one.cues or _two_commonest([e.cue for e in one.data.train])
    labels = one.data.labels
    pairs = one.pairs or tuple(zip(labels[::2], labels[1::2], strict=False))
    return [
        (pair, cues)
        for pair in pairs
        if all(
            corner_size(corners(side, pair, cues), 8) == 8
            for side in (one.data.train, one.data.test)
        )
    ][:PAIRS]


def _two_commonest(cues: Sequence[str]) -> tuple[str, str]:
    ranked = [cue for cue, _ in sorted(Counter(cues).items(), key=lambda c: (-c[1], c[0]))]
    return ranked[0], ranked[1] if len(ranked) > 1 else ranked[0]


def _on_set(bench: Bench, one: Chosen, settings: AblationSettings) -> dict[str, dict[str, float]]:
    """Every score by pair of labels."""
    found = {}
    for labels, cues in pairs_of(one, bench, settings):
        sides: list[Crossed] = []
        twin = twin_at(bench, [e.text for e in one.data.train[:40]])
        for side, count in ((one.data.train, settings.train), (one.data.test, settings.test)):
            texts = corners(side, labels, cues)
            size = corner_size(texts, shared(count // 4, bench.share))
            used = [t[: size * (2 if i in (0, 3) else 1)] for i, t in enumerate(texts)]
            flat = [text for corner in used for text in corner]
            title = f"scr: {one.data.name}, {labels[0]} / {labels[1]}"
            with bench.progress.task(title, total=len(flat), unit="texts") as advance:
                pooled = pool(
                    bench.subject, [bench.dictionary, twin], flat, context=settings.context,
                    padded=settings.padded, advance=advance,
                )  # fmt: skip
            sides.append(Crossed(pooled, tuple(len(corner) for corner in used)))
        units = [unit_directions(each.coder) for each in (bench.dictionary, twin)]
        name = f"{labels[0]} / {labels[1]}"
        found[name] = scr_scores(sides[0], sides[1], units, settings, bench.seed)
    return found


def tasks_of(counts: tuple[int, ...], generator: torch.Generator) -> dict[str, Task]:
    """The three tasks on the corners' texts: the cue, the label, and both at once."""
    size = counts[1]
    starts = [sum(counts[:i]) for i in range(4)]
    some = [torch.arange(start, start + size) for start in starts]
    whole = [torch.arange(start, start + n) for start, n in zip(starts, counts, strict=True)]

    def task(yes: list[Tensor], no: list[Tensor]) -> Task:
        return told_apart(torch.cat(yes), torch.cat(no), generator)

    return {
        "cue": task([some[0], some[2]], [some[1], some[3]]),
        "label": task([some[0], some[1]], [some[2], some[3]]),
        "both": task([whole[0]], [whole[3]]),
    }


def scr_scores(
    train: Crossed,
    test: Crossed,
    units: list[Float[Tensor, "latents d_out"]],
    settings: AblationSettings,
    seed: int,
) -> dict[str, float]:
    """All scores of one pair of labels: of the dictionary, of its random twin, of random latents,
    and of taking out the probe's own direction, which needs no dictionary.
    """
    generator = torch.Generator().manual_seed(seed)
    learn, judge = (tasks_of(side.counts, generator) for side in (train, test))
    seen, unseen = train.pooled[0].site, test.pooled[0].site
    probes = {
        name: trained_probe(
            (seen[learn[name].which], learn[name].yes),
            (unseen[judge[name].which], judge[name].yes), settings.probe, generator,
        )
        for name in learn
    }  # fmt: skip

    def accuracy(probe: str, task: str, x: Tensor) -> float:
        return probes[probe].accuracy(x[judge[task].which], judge[task].yes)

    found = {f"accuracy_{name}": accuracy(name, name, unseen) for name in probes}
    was = {task: accuracy("both", task, unseen) for task in ("label", "cue")}
    found |= {f"accuracy_both_on_{task}": value for task, value in was.items()}
    reported = 1 if was["label"] <= was["cue"] else 2

    def score(removed: str, x: Tensor) -> tuple[int, float]:
        asked = "label" if removed == "cue" else "cue"
        gap = found[f"accuracy_{asked}"] - was[asked]
        gained = accuracy("both", asked, x) - was[asked]
        return (1 if removed == "cue" else 2), (gained / gap if gap >= 0.001 else 0.0)

    def note(prefix: str, n: int | str, remove: Callable[[str], Tensor]) -> None:
        for removed in ("cue", "label"):
            direction, value = score(removed, remove(removed))
            found[f"{prefix}scr_dir{direction}_threshold_{n}"] = value
            if direction == reported:
                found[f"{prefix}scr_metric_threshold_{n}"] = value

    for prefix, place in (("", 0), ("random_", 1)):
        pooled, unit = test.pooled[place], units[place]
        by_task = {
            name: effects(train.pooled[place], learn[name], probes[name], unit, signed=False)
            for name in ("cue", "label")
        }
        for n in fitting(settings.n, len(unit)):
            note(prefix, n, _without(pooled, unit, by_task, n))
            if not place:
                note("random_latents_", n, _without_any(pooled, unit, n, generator))
    note("direction_", 1, lambda removed: _projected(unseen, probes[removed]))
    return found


def _without(
    pooled: Pooled, unit: Tensor, by_task: dict[str, Tensor], n: int
) -> Callable[[str], Tensor]:
    return lambda removed: pooled.without(strongest(by_task[removed], n), unit)


def _without_any(
    pooled: Pooled, unit: Tensor, n: int, generator: torch.Generator
) -> Callable[[str], Tensor]:
    alive = pooled.latents.any(0).nonzero()[:, 0]
    some = alive[torch.randperm(len(alive), generator=generator)[:n]]
    return lambda removed: pooled.without(some, unit)


def _projected(x: Tensor, probe: Probe) -> Tensor:
    """The site's means without their part along a probe's weights, put at the probe's boundary."""
    along = (x @ probe.weight + probe.bias) / probe.weight.square().sum().clamp_min(1e-12)
    return x - along[:, None] * probe.weight
