"""k-sparse probing (Gurnee et al. 2023, 2305.01610) as SAEBench has it (2503.09532).

For each class against the others, the k latents whose means differ most between the two are given
to a logistic probe; its accuracy on test texts says how much of the concept so few latents hold.
Beside it stand the same with the site's own coordinates and with principal components, probes on
everything, and what must come out bad: a random dictionary and shuffled labels.
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.validate.hub_sets import PROBING
from unweave.validate.labelled import Drawn, draw_classes
from unweave.validate.protocols.controls import twin_at
from unweave.validate.protocols.data_sets import (
    Chosen,
    averaged,
    chosen_sets,
    each_set,
    ordered,
    shared,
)
from unweave.validate.protocols.pooling import Pooled, pool
from unweave.validate.protocols.probes import (
    Task,
    TrainedProbeSettings,
    exact_probe,
    nearest_columns,
    one_against_others,
    trained_probe,
)
from unweave.validate.protocols.protocol import Bench, Outcome


class SparseProbingSettings(BaseModel):
    """Settings of sparse probing; defaults as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    train: PositiveInt = 4000
    """Training texts of one probe: half of its class, half of the others."""
    test: PositiveInt = 1000
    """Test texts of one probe."""
    context: PositiveInt = 128
    """Tokens of a text that are read."""
    k: tuple[PositiveInt, ...] = (1, 2, 5)
    """Numbers of latents that a probe is given."""
    classes: PositiveInt = 5
    """Most labels of a data set that are used."""
    dense: TrainedProbeSettings = TrainedProbeSettings(
        batch=250, epochs=100, lr=1e-2, l1=0.0, patience=10
    )
    """Training of probes on everything."""


Sides = dict[str, Float[Tensor, "_ _"]]
"""By text: columns that probes may choose from, by what they are."""


def sparse_probing(bench: Bench, settings: SparseProbingSettings | None = None) -> Outcome:
    """Accuracies averaged over classes, then over data sets."""
    settings = settings or SparseProbingSettings()
    sets = chosen_sets(bench, PROBING, most=settings.classes, fits=lambda s: len(s.labels) > 1)
    found = each_set(
        bench, "sparse_probing", lambda one: _on_set(bench, one, settings), sets, settings,
        "Sparse probing needs labelled texts of at least two labels, and the folder given has none",
    )  # fmt: skip
    by_set = cast(Mapping[str, Mapping[str, dict[str, float]]], found)
    first = [f"sae_top_{k}_test_accuracy" for k in settings.k]
    means = averaged([averaged(list(one.values())) for one in by_set.values()])
    means, bad = ordered(means, first), ("random_", "shuffled_")
    return Outcome(
        protocol="sparse_probing",
        numbers={n: _share(value) for n, value in means.items() if not n.startswith(bad)},
        controls={n: _share(value) for n, value in means.items() if n.startswith(bad)},
        details={
            "settings": settings.model_dump(mode="json"), "share": bench.share,
            "by_set_and_class": found,
        },
    )  # fmt: skip


def _share(value: float) -> Number:
    return Number(value=value, unit="share")


def _on_set(
    bench: Bench, one: Chosen, settings: SparseProbingSettings
) -> dict[str, dict[str, float]]:
    """Every accuracy by class."""
    sizes = (shared(n // 2, bench.share) for n in (settings.train, settings.test))
    train, test = (
        draw_classes(side, one.classes, size, bench.seed)
        for side, size in zip((one.data.train, one.data.test), sizes, strict=True)
    )
    texts = sum(len(t) for drawn in (train, test) for t in drawn.values())
    coders = [bench.dictionary, twin_at(bench, [t for ts in train.values() for t in ts[:20]])]
    title = f"sparse_probing: {one.data.name}"
    with bench.progress.task(title, total=texts, unit="texts") as advance:
        sides = []
        for drawn in (train, test):
            flat = [text for of_class in drawn.values() for text in of_class]
            pooled = pool(
                bench.subject, coders, flat, context=settings.context, padded=False,
                advance=advance,
            )  # fmt: skip
            sides.append((pooled, _classes(drawn)))
    return accuracies(sides[0], sides[1], list(train), settings, bench.seed)


def _classes(drawn: Drawn) -> Int[Tensor, " texts"]:
    return torch.tensor([place for place, ts in enumerate(drawn.values()) for _ in ts])


def accuracies(
    train: tuple[list[Pooled], Int[Tensor, " train"]],
    test: tuple[list[Pooled], Int[Tensor, " test"]],
    names: list[str],
    settings: SparseProbingSettings,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Accuracies of each class against the others, from pooled texts with their class.

    The first of the pooled lists is the dictionary's, the second the random one's.
    """
    learn, judge = _columns(train[0], test[0])
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for place, name in enumerate(names):
        tasks = [one_against_others(side[1], place, generator) for side in (train, test)]
        found[name] = _of_class(learn, judge, tasks, settings, generator)
    return found


def _columns(train: list[Pooled], test: list[Pooled]) -> tuple[Sides, Sides]:
    axes = principal_directions(train[0].site)
    found = []
    for pooled in (train, test):
        site = pooled[0].site
        found.append({
            "sae": pooled[0].latents, "llm": site, "random": pooled[1].latents,
            "pca": (site - axes.mean) @ axes.directions.T,
        })  # fmt: skip
    return found[0], found[1]


def _of_class(
    learn: Sides,
    judge: Sides,
    tasks: list[Task],
    settings: SparseProbingSettings,
    generator: torch.Generator,
) -> dict[str, float]:
    (seen, yes), (unseen, true) = tasks
    found = {}
    for kind in ("llm", "sae"):
        sides = ((learn[kind][seen], yes), (judge[kind][unseen], true))
        probe = trained_probe(*sides, settings.dense, generator)
        found[f"{kind}_test_accuracy"] = probe.accuracy(*sides[1])
    mixed = yes[torch.randperm(len(yes), generator=generator)]
    for prefix, kind, labels in (
        ("sae", "sae", yes), ("llm", "llm", yes), ("pca", "pca", yes),
        ("random", "random", yes), ("shuffled", "sae", mixed),
    ):  # fmt: skip
        x, y = learn[kind][seen], judge[kind][unseen]
        for k in settings.k:
            columns = nearest_columns(x, labels, k)
            probe = exact_probe(x[:, columns], labels)
            found[f"{prefix}_top_{k}_test_accuracy"] = probe.accuracy(y[:, columns], true)
    return found
