"""RAVEL (Huang et al. 2024, 2402.17700; SAEBench's protocol): can attributes be changed apart?

For each attribute A of a class of entities:

    cause      put into prompts for A the entity of another prompt for A: the answer should follow
    isolation  do the same to prompts for the other attributes: their answers should stay

through a mask of latents learned on other pairs (`ravel_mask`); D = (cause + isolation) / 2, mean
over attributes. Swapping nothing or the whole vector gives D = 1/2, from the two ends. Answers are
compared by their first token, which the prompts kept are known to say (published: six tokens are
written and searched for the label).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.dictionaries.baselines.linear import Coefficients
from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.validate.bootstrap import mean_interval
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.protocol import Bench, Outcome, Refused
from unweave.validate.protocols.ravel_data import (
    Asked,
    AskSettings,
    Entities,
    Prompt,
    ask_entities,
    fetch_entities,
    load_all_entities,
    our_cities,
)
from unweave.validate.protocols.ravel_mask import (
    Disentangled,
    MaskSettings,
    Pair,
    Swapping,
    at_entities,
    entity_vectors,
    learned_mask,
    swap_scores,
)

PUBLISHED = {
    "city": ("Country", "Continent", "Language"),
    "nobel_prize_winner": ("Country of Birth", "Field", "Gender"),
}
"""Classes of entities and attributes that SAEBench uses."""


_TRIES = 20
"""Draws for each pair wanted, before one is content with fewer."""
_FEW = 200
"""Entities that no share is taken of."""


class RavelSettings(BaseModel):
    """Settings of RAVEL; sizes as published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    classes: tuple[str, ...] = ()
    """Classes of entities fetched from the hub where no folder is given, `city` and
    `nobel_prize_winner` as published; none: the cities that ship with unweave."""
    ask: AskSettings = AskSettings()
    """Which prompts are used."""
    mask: MaskSettings = MaskSettings()
    """The learned mask."""
    pairs: PositiveInt = 5000
    """Pairs of an attribute for cause, and as many for isolation, at most."""
    train_share: float = Field(default=0.7, gt=0, lt=1)
    """Share of the pairs that the mask is learned on."""
    least_prompts: PositiveInt = 40
    """An attribute counts from so many prompts that the subject answers correctly."""
    least_labels: PositiveInt = 2
    """And so many different answers among them."""


class Swaps(NamedTuple):
    """The same pairs through different coders."""

    name: str
    """Of the coder."""
    by_attribute: dict[str, Disentangled]
    """What was found for each attribute."""
    chosen: dict[str, int]
    """Latents swapped for each attribute."""


def ravel(bench: Bench, settings: RavelSettings | None = None) -> Outcome:
    """D, cause and isolation, of the dictionary and of what must come out worse.

    Raises:
        Refused: the subject answers too little, or what is judged is no linear autoencoder of one
            site.
    """
    settings = settings or RavelSettings()
    _check(bench)
    found: dict[str, dict[str, Swaps]] = {}
    asked: dict[str, Asked] = {}
    reasons = []
    for whole in _classes(bench, settings):
        entities = _share_of(whole, bench)
        answered = asked[entities.name] = ask_entities(bench.subject, entities, settings.ask)
        usable = _usable(answered, settings)
        if len(usable) < 2:
            told = ", ".join(f"{a} {answered.right[a]} of {n}" for a, n in answered.asked.items())
            reasons.append(f"{entities.name}: {told or 'no prompt'}")
            continue
        prompts = [p for p in answered.prompts if p.attribute in usable]
        found[entities.name] = swaps_of(bench, settings, prompts, usable)
    if not found:
        raise Refused(
            f"{bench.subject.name} answers correctly too few prompts for two attributes of one "
            f"kind of entity, {settings.least_prompts} each ({'; '.join(reasons)})"
        )
    return _outcome(settings, found, asked)


def _check(bench: Bench) -> None:
    one = bench.dictionary
    spec = one.coder.spec if isinstance(one.coder, Dictionary) else None
    if not one.autoencodes or len(one.reads) != 1 or (spec and (spec.skip or spec.layer_norm)):
        raise Refused("RAVEL swaps latents of autoencoders of one site whose decoder is linear")
    if bench.subject.tokenizer is None:
        raise Refused(f"{bench.subject.name} has no tokenizer, so it cannot be asked")


def _classes(bench: Bench, settings: RavelSettings) -> list[Entities]:
    if bench.data is not None and (bench.data / "ravel").is_dir():
        found = load_all_entities(bench.data / "ravel")
        return [e.only(PUBLISHED.get(e.name, tuple(e.templates))) for e in found]
    if settings.classes:
        return [fetch_entities(n).only(PUBLISHED.get(n, ())) for n in settings.classes]
    return [our_cities()]


def _share_of(entities: Entities, bench: Bench) -> Entities:
    names = list(entities.attributes)
    count = max(_FEW, round(len(names) * bench.share))
    order = np.random.default_rng(bench.seed).permutation(len(names))[:count]
    kept = {names[at]: entities.attributes[names[at]] for at in sorted(order.tolist())}
    return entities._replace(attributes=kept)


def _usable(asked: Asked, settings: RavelSettings) -> list[str]:
    def enough(attribute: str) -> bool:
        mine = [p for p in asked.prompts if p.attribute == attribute]
        labels = {p.answer for p in mine}
        return len(mine) >= settings.least_prompts and len(labels) >= settings.least_labels

    return [attribute for attribute in asked.asked if enough(attribute)]


def swaps_of(
    bench: Bench, settings: RavelSettings, prompts: list[Prompt], attributes: Sequence[str]
) -> dict[str, Swaps]:
    """What swapping does through the dictionary and through what must come out worse, by name."""
    site = bench.dictionary.reads[0]
    x = entity_vectors(bench.subject, site, prompts)
    pairs = {a: _pairs(prompts, a, bench, settings) for a in attributes}
    whole = Coefficients(lambda v: v, torch.eye(x.shape[1]))
    twin = random_twin(bench.dictionary, x[:512], x[:512], seed=bench.seed)
    learned: dict[str, Coder] = {
        "dictionary": bench.dictionary.coder, "random": twin.coder, "neurons": whole,
    }  # fmt: skip
    found = {
        name: _learned(bench, settings, name, coder, prompts, x, pairs)
        for name, coder in learned.items()
    }
    ends = Swapping(bench.subject, site, prompts, at_entities(whole, x), keep_error=True)
    for name, value in (("nothing", 0.0), ("everything", 1.0)):
        mask = torch.full((len(ends.seen.rows),), value)
        found[name] = Swaps(
            name, {a: swap_scores(ends, test, mask) for a, (_, test) in pairs.items()}, {}
        )
    return found


def _learned(
    bench: Bench,
    settings: RavelSettings,
    name: str,
    coder: Coder,
    prompts: list[Prompt],
    x: Tensor,
    pairs: dict[str, tuple[list[Pair], list[Pair]]],
) -> Swaps:
    swap = Swapping(
        bench.subject, bench.dictionary.reads[0], prompts, at_entities(coder, x),
        keep_error=settings.mask.keep_error,
    )  # fmt: skip
    scores, chosen = {}, {}
    for attribute, (train, test) in pairs.items():
        bench.progress.say(f"ravel: {name}, {attribute}, {len(train)} pairs to learn on")
        mask = learned_mask(swap, train, settings.mask, seed=bench.seed, progress=bench.progress)
        scores[attribute] = swap_scores(swap, test, mask.float())
        chosen[attribute] = int(mask.sum())
    return Swaps(name, scores, chosen)


def _pairs(
    prompts: Sequence[Prompt], attribute: str, bench: Bench, settings: RavelSettings
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn on and to judge by; half of them for cause, half for isolation."""
    random = np.random.default_rng(bench.seed)
    wanted = max(8, round(settings.pairs * bench.share))
    cause = _drawn(prompts, [attribute], wanted, random, cause=True)
    others = sorted({p.attribute for p in prompts} - {attribute})
    isolation = _drawn(prompts, others, len(cause), random, cause=False)
    both = cause[: len(isolation)] + isolation
    order = [both[at] for at in random.permutation(len(both))]
    cut = round(len(order) * settings.train_share)
    return order[:cut], order[cut:]


def _drawn(
    prompts: Sequence[Prompt],
    attributes: Sequence[str],
    wanted: int,
    random: np.random.Generator,
    *,
    cause: bool,
) -> list[Pair]:
    """Pairs of prompts for one of the attributes, each as often, with different answers."""
    of = [[i for i, p in enumerate(prompts) if p.attribute == name] for name in attributes]
    found: dict[Pair, None] = {}
    for _ in range(_TRIES * wanted):
        if len(found) == wanted:
            break
        mine = of[random.integers(len(of))]
        base, source = (mine[at] for at in random.integers(len(mine), size=2))
        if prompts[base].answer != prompts[source].answer:
            found[Pair(base, source, cause)] = None
    return list(found)


def _outcome(
    settings: RavelSettings, found: dict[str, dict[str, Swaps]], asked: dict[str, Asked]
) -> Outcome:
    def number(name: str, of: str) -> Number:
        each = [d for swaps in found.values() for d in swaps[name].by_attribute.values()]
        parts = [_interval([getattr(d, kind) for d in each]) for kind in ("cause", "isolation")]
        if of != "score":
            return Number(unit="share", **parts[("cause", "isolation").index(of)])
        halves = {key: (parts[0][key] + parts[1][key]) / 2 for key in ("value", "low", "high")}
        return Number(unit="share", **halves)

    kinds = {"disentanglement": "score", "cause": "cause", "isolation": "isolation"}
    controls = {
        f"{kind}_{name}": number(name, of)
        for name in ("random", "neurons", "nothing", "everything")
        for kind, of in kinds.items()
    }
    return Outcome(
        protocol="ravel",
        numbers={kind: number("dictionary", of) for kind, of in kinds.items()},
        controls=controls,
        details={
            "settings": settings.model_dump(mode="json"),
            "asked": {name: {"asked": a.asked, "right": a.right} for name, a in asked.items()},
            "by_attribute": {
                name: {key: _told(swaps) for key, swaps in by.items()} for name, by in found.items()
            },
            "control": "random: a mask over random directions of the same norms, number and L0; "
            "neurons: over the site's coordinates; nothing and everything: the ends of the scale",
        },
    )


def _interval(each: Sequence[Tensor]) -> dict[str, float]:
    """Mean over attributes, each pair of an attribute counting the same, resampled by pair."""
    values = torch.cat(list(each)).double().numpy()
    weights = torch.cat([torch.full((len(e),), 1 / max(1, len(e))) for e in each]).double().numpy()
    found = mean_interval(values, weights=weights)
    return {"value": found.value, "low": found.low, "high": found.high}


def _told(swaps: Swaps) -> dict[str, object]:
    return {
        attribute: {
            "cause": float(d.cause.mean()), "isolation": float(d.isolation.mean()),
            "disentanglement": d.score, "pairs": len(d.cause) + len(d.isolation),
            "latents": swaps.chosen.get(attribute),
        }
        for attribute, d in swaps.by_attribute.items()
    }  # fmt: skip
