"""Measure a method: what it costs the network, and how long it and what is said of it are.

All on the same held-out rows, none of which fitted, chose or described anything:

    math_loss        KL(original || network with the quantised parts in it) / ln 2
    math_length      code length of what fires and how strongly + dictionary and edges, amortised
    semantic_loss    the same KL with what the descriptions predict in the latents' place
    semantic_length  bits of the descriptions under the rule code, amortised

The rows for explaining choose B, give the code its probabilities and are what is described. Splice
mode `propagated`: of several parts each reads the changed stream. Intervals are over rows.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unweave.artifact.measurements import Measurement
from unweave.artifact.scores import Number
from unweave.describe.claims import Claim
from unweave.describe.describe import describe_part
from unweave.describe.evidence import PartEvidence
from unweave.describe.explain import base_rates
from unweave.describe.rules import RuleTable, compile_claims
from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.bootstrap import Interval, mean_interval, ratio_interval
from unweave.validate.four_numbers import number
from unweave.validate.length import VALUE_BITS, dictionary_bits, edge_bits, sparse_bits
from unweave.validate.numbers.collecting import collect_codes, evidence_of
from unweave.validate.numbers.ground import Ground
from unweave.validate.numbers.levels import Levels, coarsest, fit_levels
from unweave.validate.numbers.method import Method, sideless, two_sided
from unweave.validate.numbers.spoken import run_spoken
from unweave.validate.placed import Edit, Placed, needs_input, run_with
from unweave.validate.semantic import (
    PartScores,
    SemanticSettings,
    pooled_mean,
    score_part,
    semantic_accuracy,
    shuffled_rules,
)
from unweave.validate.splice import RowScores

NAT = 1 / math.log(2)
"""Bits in a nat."""


class Said(NamedTuple):
    """What is said of one part's latents."""

    rules: RuleTable
    """The claims, latent by latent."""
    shuffled: RuleTable
    """The same claims given to other latents."""
    bits: float
    """Length of those of the latents alive."""
    scores: PartScores
    """How they do on the held-out rows."""


def measure(ground: Ground, method: Method) -> Measurement:
    """The four numbers of one method, with its own controls.

    Latents that have no claims yet are described here, from the rows for explaining.

    Raises:
        UserError: a method whose latents never fire.
    """
    codes = collect_codes(ground.subject, method.parts, ground.rows, progress=ground.progress)
    signed = [name for name, code in codes.items() if bool((code.value < 0).any())]
    if signed:
        method = sideless(method, signed)
        codes |= {name: two_sided(codes[name]) for name in signed}
    evidence = {
        name: evidence_of(name, code, ground.rows, len(ground.explain), ground.vocabulary)
        for name, code in codes.items()
    }
    if not any(len(one.explain.latent) for one in evidence.values()):
        raise UserError(f"No latent of {method.name} ever fires on this text: nothing to measure")
    levels = choose_levels(ground, method, evidence)
    said = {
        name: _said(ground, one, None if method.claims is None else method.claims[name])
        for name, one in evidence.items()
    }
    length = _lengths(ground, method, evidence, levels)
    return _measurement(ground, method, codes, levels, said, length)


def choose_levels(
    ground: Ground, method: Method, evidence: Mapping[str, PartEvidence]
) -> dict[str, Levels]:
    """Rate-distortion: the coarsest strengths, B for all parts, that the network does not notice.

    More steps are taken to hurt no more than fewer, so B is found by halving.
    """
    s, rows = ground.settings, ground.choosing

    def fitted(bits: int) -> dict[str, Levels]:
        return {
            name: fit_levels(one.explain, _places(one), one.n_latents, bits)
            for name, one in evidence.items()
        }

    def increase(edits: Mapping[str, Edit] | None) -> float:
        found = ground.scores(
            rows, lambda group: run_with(ground.subject, group, method.parts, edit=edits)
        )
        return float(found.ce_increase.mean())

    exact = increase(None)
    bound = exact + max(s.unnoticed_share * abs(exact), s.unnoticed_nats)
    bits = coarsest(lambda b: increase(_edits(fitted(b))) > bound, s.most_bits)
    return fitted(bits)


def _edits(levels: Mapping[str, Levels]) -> dict[str, Edit]:
    return {name: one.edit() for name, one in levels.items()}


def _places(evidence: PartEvidence) -> int:
    return evidence.explain_rows * (evidence.tokens.shape[1] - 1)


def _said(ground: Ground, evidence: PartEvidence, claims: Sequence[Claim] | None) -> Said:
    if claims is None:
        claims = [one.claim for one in describe_part(evidence, ground.settings.describe)]
    seed = ground.settings.shuffle_seed
    settings = SemanticSettings(bootstrap=ground.settings.bootstrap, shuffle_seed=seed)
    scores = score_part(evidence, claims, settings)
    table = compile_claims(claims, ground.vocabulary.size)
    return Said(
        rules=table,
        shuffled=shuffled_rules(table, scores.alive, base_rates(evidence).rate, seed=seed),
        bits=sum(claims[latent].bits(ground.vocabulary.size) for latent in scores.alive.tolist()),
        scores=scores,
    )


class _Lengths(NamedTuple):
    code: Interval
    """Bits per token of what fires and how strongly."""
    amortised: float
    """Bits per token of the dictionary and the edges."""


def _lengths(
    ground: Ground,
    method: Method,
    evidence: Mapping[str, PartEvidence],
    levels: Mapping[str, Levels],
) -> _Lengths:
    rows, places = ground.heldout.shape[0], ground.heldout.shape[1] - 1
    bits = np.zeros(rows)
    for name, one in evidence.items():
        bits += levels[name].row_bits(one.heldout, rows, places)
    code = ratio_interval(bits, np.full(rows, float(places)), ground.settings.bootstrap)
    tokens = ground.settings.amortised_over
    dictionary = sum(_dictionary(ground, part, tokens) for part in method.parts)
    nodes = sum(part.coder.n_latents for part in method.parts)
    edges = edge_bits(method.edges, nodes) / tokens if method.edges else 0.0
    return _Lengths(code, dictionary + edges)


def _dictionary(ground: Ground, part: Placed, tokens: int) -> float:
    """The paper's F (d_in + d_out + 2) numbers of 7 bits, and a skip's matrix."""
    n, d_out = part.coder.directions().shape
    d_in = sum(ground.width(site) for site in part.reads)
    skip = d_in * d_out * VALUE_BITS / tokens if needs_input(part.coder) else 0.0
    return dictionary_bits(n, d_in, d_out, tokens) + skip


class _Splices(NamedTuple):
    """Scores of the network with the parts, with their words, and with nothing, in their place."""

    parts: RowScores
    spoken: RowScores
    garbled: RowScores
    floor: RowScores


def _splices(
    ground: Ground, method: Method, levels: Mapping[str, Levels], said: Mapping[str, Said]
) -> _Splices:
    subject, parts, edits = ground.subject, method.parts, _edits(levels)

    def spoken(rules: Mapping[str, RuleTable]) -> RowScores:
        return ground.scores(
            ground.spliced,
            lambda rows: run_spoken(subject, rows, parts, rules, ground.vocabulary),
        )

    return _Splices(
        parts=ground.scores(
            ground.spliced, lambda rows: run_with(subject, rows, parts, edit=edits)
        ),
        spoken=spoken({name: one.rules for name, one in said.items()}),
        garbled=spoken({name: one.shuffled for name, one in said.items()}),
        floor=ground.floor(method.writes),
    )


def _measurement(
    ground: Ground,
    method: Method,
    codes: Mapping[str, SparseCode],
    levels: Mapping[str, Levels],
    said: Mapping[str, Said],
    length: _Lengths,
) -> Measurement:
    settings = ground.settings.bootstrap
    spliced = _splices(ground, method, levels, said)
    semantic = semantic_accuracy([one.scores for one in said.values()], settings)
    bits = sum(one.bits for one in said.values())
    words = bits / ground.settings.amortised_over
    return Measurement(
        name=method.name,
        kind=method.kind,
        note=method.note,
        math_loss=_loss(ground, spliced.parts),
        math_length=number(
            Interval(*(end + length.amortised for end in length.code)), "bits/token"
        ),
        semantic_loss=_loss(ground, spliced.spoken),
        semantic_share=number(semantic.fraction, "share"),
        semantic_length=Number(value=words, low=words, high=words, unit="bits/token"),
        more={
            **_more(ground, spliced),
            "bits_explained": number(semantic.bits_per_token, "bits/token"),
            "bits_of_firing": number(semantic.base_bits_per_token, "bits/token"),
            "auroc": _auroc(ground, said),
            "code_length": number(length.code, "bits/token"),
            **_sizes(method, codes, levels),
            "description_bits": Number(value=bits, unit="bits"),
        },
        controls={
            "semantic_share_shuffled": number(semantic.fraction_shuffled, "share"),
            "semantic_loss_shuffled": _loss(ground, spliced.garbled),
            "semantic_ce_increase_shuffled": _nats(ground, spliced.garbled),
            "auroc_shuffled": _auroc(ground, said, shuffled=True),
            "loss_mean_ablation": _loss(ground, spliced.floor),
            "ce_increase_mean_ablation": _nats(ground, spliced.floor),
        },
    )


def _more(ground: Ground, spliced: _Splices) -> dict[str, Number]:
    """What is said in nats, and shares of what mean ablation costs."""
    settings, floor = ground.settings.bootstrap, spliced.floor.ce_increase

    def recovered(scores: RowScores) -> Number:
        return number(ratio_interval(floor - scores.ce_increase, floor, settings), "share")

    same = mean_interval(spliced.parts.top1_agreement, settings)
    return {
        "ce_increase": _nats(ground, spliced.parts),
        "recovered_mean": recovered(spliced.parts),
        "top1_agreement": number(same, "share"),
        "semantic_ce_increase": _nats(ground, spliced.spoken),
        "semantic_recovered_mean": recovered(spliced.spoken),
    }


def _sizes(
    method: Method, codes: Mapping[str, SparseCode], levels: Mapping[str, Levels]
) -> dict[str, Number]:
    l0 = sum(code.l0() for code in codes.values())
    bits = next(iter(levels.values())).bits
    latents = sum(part.coder.n_latents for part in method.parts)
    return {
        "index_length": Number(value=sparse_bits(l0, latents, bits), unit="bits/token"),
        "value_bits": Number(value=bits, unit="bits"),
        "l0": Number(value=l0, unit="latents/token"),
        "latents": Number(value=latents, unit="latents"),
    }


def _loss(ground: Ground, scores: RowScores) -> Number:
    return number(mean_interval(scores.kl * NAT, ground.settings.bootstrap), "bits/token")


def _nats(ground: Ground, scores: RowScores) -> Number:
    return number(mean_interval(scores.ce_increase, ground.settings.bootstrap), "nats/token")


def _auroc(ground: Ground, said: Mapping[str, Said], *, shuffled: bool = False) -> Number:
    scores = [one.scores for one in said.values()]
    found = pooled_mean(scores, "auroc", ground.settings.bootstrap, shuffled=shuffled)
    return number(found, "chance")
