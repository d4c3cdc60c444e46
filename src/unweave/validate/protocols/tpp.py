"""Targeted probe perturbation (Karvonen et al. 2025, SAEBench, 2503.09532).

A probe for each class against the others. The latents that matter most to one probe are taken out:

    score = mean over classes of (its own probe's loss of accuracy - the mean loss of the others')

A dictionary with a latent for each class, and none for two, scores the most.
"""

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.validate.hub_sets import CROSSED
from unweave.validate.labelled import draw_classes
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
from unweave.validate.protocols.probes import one_against_others, trained_probe
from unweave.validate.protocols.protocol import Bench, Outcome


def tpp(bench: Bench, settings: AblationSettings | None = None) -> Outcome:
    """Scores averaged over classes, then over data sets."""
    settings = settings or AblationSettings()
    sets = chosen_sets(bench, CROSSED, most=settings.classes, fits=lambda s: len(s.labels) > 2)
    found = each_set(
        bench, "tpp", lambda one: _on_set(bench, one, settings), sets, settings,
        "TPP needs labelled texts of at least three labels, and the folder given has none",
    )  # fmt: skip
    first = [f"tpp_threshold_{n}_total_metric" for n in settings.n]
    first += [f"{bad}{name}" for bad in ("random_latents_", "random_") for name in first]
    means = ordered(averaged(list(cast(Mapping[str, dict[str, float]], found).values())), first)
    bad = ("random_",)
    return Outcome(
        protocol="tpp",
        numbers={n: _share(v) for n, v in means.items() if not n.startswith(bad)},
        controls={n: _share(v) for n, v in means.items() if n.startswith(bad)},
        details={
            "settings": settings.model_dump(mode="json"), "share": bench.share, "by_set": found,
        },
    )  # fmt: skip


def _share(value: float) -> Number:
    return Number(value=value, unit="share")


def _on_set(bench: Bench, one: Chosen, settings: AblationSettings) -> dict[str, float]:
    twin = twin_at(bench, [e.text for e in one.data.train[:40]])
    sides: list[tuple[list[Pooled], Int[Tensor, " texts"]]] = []
    for examples, count in ((one.data.train, settings.train), (one.data.test, settings.test)):
        drawn = draw_classes(examples, one.classes, shared(count // 2, bench.share), bench.seed)
        flat = [text for of_class in drawn.values() for text in of_class]
        with bench.progress.task(f"tpp: {one.data.name}", total=len(flat), unit="texts") as advance:
            pooled = pool(
                bench.subject, [bench.dictionary, twin], flat, context=settings.context,
                padded=settings.padded, advance=advance,
            )  # fmt: skip
        classes = torch.tensor([i for i, texts in enumerate(drawn.values()) for _ in texts])
        sides.append((pooled, classes))
    units = [unit_directions(each.coder) for each in (bench.dictionary, twin)]
    return tpp_scores(sides[0], sides[1], units, settings, bench.seed)


def tpp_scores(
    train: tuple[list[Pooled], Int[Tensor, " train"]],
    test: tuple[list[Pooled], Int[Tensor, " test"]],
    units: list[Float[Tensor, "latents d_out"]],
    settings: AblationSettings,
    seed: int,
) -> dict[str, float]:
    """All scores of one data set, of the dictionary, its random twin and random latents.

    Every probe is judged on the same texts before and after; the published code draws the other
    classes' texts anew each time, which adds noise and changes no mean.
    """
    generator = torch.Generator().manual_seed(seed)
    names = range(int(train[1].max()) + 1)
    learn, judge = (
        [one_against_others(side[1], place, generator) for place in names] for side in (train, test)
    )
    seen, unseen = train[0][0].site, test[0][0].site
    probes = [
        trained_probe((seen[a.which], a.yes), (unseen[b.which], b.yes), settings.probe, generator)
        for a, b in zip(learn, judge, strict=True)
    ]

    def accuracies(x: Tensor) -> Float[Tensor, " classes"]:
        found = [p.accuracy(x[t.which], t.yes) for p, t in zip(probes, judge, strict=True)]
        return torch.tensor(found, dtype=torch.float64)

    clean = accuracies(unseen)
    found = {"accuracy_clean": clean.mean().item()}
    for prefix, place in (("", 0), ("random_", 1)):
        pooled, unit = test[0][place], units[place]
        by_class = [effects(train[0][place], learn[i], probes[i], unit, signed=True) for i in names]
        alive = pooled.latents.any(0).nonzero()[:, 0]
        for n in fitting(settings.n, len(unit)):
            lost = [clean - accuracies(pooled.without(strongest(e, n), unit)) for e in by_class]
            found |= _parts(prefix, n, torch.stack(lost))
            if not place:
                some = [torch.randperm(len(alive), generator=generator)[:n] for _ in names]
                lost = [clean - accuracies(pooled.without(alive[s], unit)) for s in some]
                found |= _parts("random_latents_", n, torch.stack(lost))
    return found


def _parts(prefix: str, n: int, lost: Float[Tensor, "removed asked"]) -> dict[str, float]:
    own = lost.diagonal()
    others = (lost.sum(1) - own) / (len(lost) - 1)
    parts = {
        "total_metric": own - others, "intended_diff_only": own, "unintended_diff_only": others,
    }  # fmt: skip
    return {f"{prefix}tpp_threshold_{n}_{part}": v.mean().item() for part, v in parts.items()}
