"""Tests by intervention as protocols of the suite: effects, and descriptions scrubbed."""

import numpy as np
from jaxtyping import Int
from torch import Tensor

from unweave.artifact.scores import Number
from unweave.describe.describe import describe_part
from unweave.describe.subject_tokens import vocabulary_of
from unweave.subject.rows import token_rows
from unweave.validate.bootstrap import Interval
from unweave.validate.four_numbers import number
from unweave.validate.interventions.agreement import Agreement
from unweave.validate.interventions.measuring import InterventionSettings, intervene
from unweave.validate.interventions.scrub_claims import scrub_claims
from unweave.validate.numbers.collecting import collect_codes, evidence_of
from unweave.validate.numbers.method import TwoSided, two_sided
from unweave.validate.protocols.protocol import Bench, Outcome, Refused

ROWS, CONTEXT = 256, 64
"""Held-out rows at a share of one, and their tokens."""
MOST_ACTIVATIONS = 2**26
"""Activations, zeros included (256 MB), of the rows that a test is run on at most."""


def interventions(bench: Bench, settings: InterventionSettings | None = None) -> Outcome:
    """Predict what changed latents do from weights and gradients, do it, and compare.

    Raises:
        Refused: no change does anything, so that there is nothing to predict.
    """
    settings = settings or InterventionSettings()
    effects = intervene(
        bench.subject, bench.dictionary, heldout(bench), settings,
        seed=bench.seed, progress=bench.progress,
    )  # fmt: skip
    if not any(np.any(found.measured) for found in effects.values()):
        raise Refused("No intervention on any latent changes a prediction: nothing to predict")
    numbers: dict[str, Number] = {}
    controls: dict[str, Number] = {}
    for act, found in effects.items():
        for (how, whose), one in found.agreements(settings.bootstrap).items():
            if whose == "own":
                numbers |= _numbers(f"{act}_{how}", one)
            else:
                controls |= _numbers(f"{act}_{how}_{whose}", one)
    return Outcome(
        protocol="interventions",
        numbers=numbers,
        controls=controls,
        details={
            "settings": settings.model_dump(mode="json"), "text": bench.text, "seed": bench.seed,
            "pairs": {act: len(found.measured) for act, found in effects.items()},
        },
    )  # fmt: skip


def scrubbing(bench: Bench) -> Outcome:
    """Scrub all latents by descriptions made on other rows, beside the claims of other latents.

    Raises:
        Refused: resampling the dictionary's latents costs nothing, so that nothing can be saved.
    """
    one, rows = bench.dictionary, heldout(bench, 2 * ROWS)
    explain, test = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    vocabulary = vocabulary_of(bench.subject)
    code = collect_codes(bench.subject, [one], rows, progress=bench.progress)[one.name]
    if bool((code.value < 0).any()):
        one, code = one._replace(coder=TwoSided(one.coder)), two_sided(code)
    evidence = evidence_of(one.name, code, rows, len(explain), vocabulary)
    claims = [said.claim for said in describe_part(evidence)]
    found = scrub_claims(bench.subject, one, claims, vocabulary, test, seed=bench.seed)
    if not all(np.isfinite(each.value) for each in found.own):
        raise Refused("Resampling the latents changes no prediction: nothing can be recovered")
    return Outcome(
        protocol="scrubbing",
        numbers=_shares("recovered", found.own),
        controls=_shares("recovered_shuffled", found.shuffled),
        details={
            "agreeing": found.agreeing, "alone": found.alone, "text": bench.text,
            "seed": bench.seed, "explain_rows": len(explain), "rows": len(test),
        },
    )  # fmt: skip


def _shares(name: str, found: tuple[Interval, Interval]) -> dict[str, Number]:
    named = {f"{name}_ce": known(found[0]), f"{name}_kl": known(found[1])}
    return {what: value for what, value in named.items() if value is not None}


def heldout(bench: Bench, rows: int = ROWS) -> Int[Tensor, "rows pos"]:
    """Held-out rows of the bench's text, as many as their activations, not sparse, fit memory."""
    context = min(CONTEXT, bench.subject.context)
    fitting = MOST_ACTIVATIONS // (context * bench.dictionary.coder.n_latents)
    wanted = max(8, min(round(rows * bench.share), fitting))
    found = token_rows(
        bench.subject, bench.text, tokens=2 * wanted * context, context=context, seed=bench.seed,
        heldout_share=0.5, progress=bench.progress,
    )  # fmt: skip
    return found.heldout[:wanted]


def known(found: Interval, unit: str = "share") -> Number | None:
    """As outcomes hold it; None where there is none."""
    return number(found, unit) if np.isfinite(found.value) else None


def _numbers(name: str, found: Agreement) -> dict[str, Number]:
    units = {"sign": "share", "rank": "correlation", "slope": "ratio", "r2": "share"}
    each = {f"{name}_{what}": known(getattr(found, what), unit) for what, unit in units.items()}
    return {what: value for what, value in each.items() if value is not None}
