"""Attribution maps: their check by weight randomisation, how true they are, how long."""

from typing import NamedTuple

import torch

from unweave.progress import Progress
from unweave.subject import Subject, load_subject, token_rows
from unweave.validate.attribution_maps.curves import CurveSettings, truth
from unweave.validate.attribution_maps.maps import CONTROLS, MAPS, incompleteness
from unweave.validate.attribution_maps.sanity import SanitySettings, sanity
from unweave.validate.attribution_maps.scores import ask, predicted, token_score
from unweave.validate.attribution_maps.told import ToldSettings, told


class Plan(NamedTuple):
    text: str
    tokens: int
    rows: int
    length: int
    stages: tuple[str, ...]
    ways: tuple[str, ...]
    told: tuple[int, ...]


PLANS = {
    "wren": Plan("self", 600_000, 24, 48, (), ("cascading", "independent"), (1, 4)),
    "smollm2": Plan("wiki", 800_000, 8, 24, ("blocks.29", "blocks.15"), ("cascading",), (1,)),
}
CURVES = CurveSettings(steps=6, random_orders=2, halves=4, seed=3)
NAMES = {"wren": "wren", "smollm2": "smollm2-135m"}


def measure_maps(name: str, progress: Progress) -> dict:
    """All numbers of all methods on held-out rows, at the last of `length` positions."""
    plan = PLANS[name]
    subject = load_subject(NAMES[name], dtype="float32")
    text = token_rows(
        load_subject(NAMES[name]), plan.text, tokens=plan.tokens, context=128, progress=progress
    )
    rows = text.heldout[: plan.rows, : plan.length]
    settings = SanitySettings(stages=plan.stages, ways=plan.ways, seed=1)
    verdicts = sanity(subject, rows, settings, progress=progress)
    return {
        "subject": subject.name,
        "text": text.source,
        "sha256": text.sha256,
        "rows": len(rows),
        "length": plan.length,
        "sanity": {n: v.model_dump(mode="json") for n, v in verdicts.items()},
        "truth": _truth(subject, rows),
        "told": {
            n: [t.model_dump(mode="json") for t in told(
                subject, rows, {**MAPS, **CONTROLS}[n], ToldSettings(tokens=plan.told)
            )]
            for n in ("integrated", "gradient", "rarity")
        },
    }  # fmt: skip


def _truth(subject: Subject, rows: torch.Tensor) -> dict:
    asked = ask(subject, rows, token_score(subject, rows, predicted(subject, rows)))
    with torch.no_grad():
        gap = (asked.score(asked.x) - asked.score(asked.baseline)).abs().mean()
    found = {}
    for name, method in {**MAPS, **CONTROLS}.items():
        made = method(subject, asked)
        lacking = incompleteness(asked, made).abs().mean() / gap
        found[name] = truth(asked, made, CURVES).model_dump(mode="json") | {
            "incompleteness": float(lacking)
        }
    return found
