"""The offline explainer: for each latent the claim that shortens the message about it most.

A claim is worth sending if, given it, saying where the latent fired on the rows for explaining
takes fewer bits than at the base rate, by more than the claim itself takes (minimum description
length; Rissanen 1978). For each kind of claim,

1. count how often each latent fired at each key, and give every pair the rate of the rule code
   that fits best, after adding a little of the base rate (so that two firings of two make no
   certainty);
2. order the keys of a latent by the bits that listing them saves, and list the first m, with m
   such that the savings less the bits for the set are largest;
3. recompute the rate at the unlisted keys, which falls, and repeat once. Keys at which a latent
   fires less than elsewhere may be listed only then: measured against a base rate that the
   latent's own keys have raised, every other key would look like an exception.

Of all kinds, the latent gets the one that saves most; if none saves anything, none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field

from unweave.describe.claims import Claim
from unweave.describe.code import (
    MEMBER_BITS,
    MEMBER_RATES,
    firing_bits,
    quantise_activation,
    quantise_rate,
    quantise_relative,
    set_bits_up_to,
)
from unweave.describe.contexts import RULE_KINDS, RuleKind
from unweave.describe.evidence import PartEvidence
from unweave.describe.rules import NO_RULE, RuleTable, claims_of
from unweave.describe.tally import Tally, sum_by, tally


class ExplainSettings(BaseModel):
    """Settings of the offline explainer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kinds: tuple[RuleKind, ...] = RULE_KINDS
    """Kinds of claim to try."""
    prior_strength: float = Field(default=1.0, ge=0)
    """A rate is estimated as if this many more places had been seen, at the base rate."""
    minimum_total: int = Field(default=2, ge=1)
    """Tokens and pairs that the text has less often are not considered."""
    most_members: int = Field(default=256, ge=1)
    """A claim lists at most this many keys."""


@dataclass(frozen=True)
class Explained:
    """What the explainer found for the latents of a part."""

    table: RuleTable
    """The chosen claims; within a claim the keys that save most come first."""
    base_rate: Float[np.ndarray, " latents"]
    """Rate of the code nearest to each latent's share of firing tokens."""
    saved: Float[np.ndarray, " latents"]
    """Bits that the claim saves on the rows for explaining, less those for its set of keys."""
    matched_firings: Int[np.ndarray, " latents"]
    """How many firings are at keys listed as likelier than the rest."""
    matched_total: Int[np.ndarray, " latents"]
    """How many places have such a key."""
    count: Int[np.ndarray, " latents"]
    """Firings on the rows for explaining."""


@dataclass(frozen=True)
class _Base:
    """What is known of each latent before any rule."""

    count: Int[np.ndarray, " latents"]
    value: Float[np.ndarray, " latents"]
    places: int
    rate: Float[np.ndarray, " latents"]


@dataclass(frozen=True)
class _Candidate:
    """The best rule of one kind for each latent, listed pair by pair."""

    tally: Tally
    pair: Int[np.ndarray, " members"]
    probability: Float[np.ndarray, " members"]
    gain: Float[np.ndarray, " members"]
    rate: Float[np.ndarray, " latents"]
    saved: Float[np.ndarray, " latents"]


def explain_part(evidence: PartEvidence, settings: ExplainSettings | None = None) -> Explained:
    """Choose a claim for every latent of a part from its firings on the rows for explaining."""
    settings = settings or ExplainSettings()
    base = base_rates(evidence)
    candidates = []
    for kind in settings.kinds:
        counts = tally(
            kind,
            evidence.explain_tokens,
            evidence.explain,
            evidence.n_latents,
            evidence.vocabulary,
            minimum_total=settings.minimum_total,
        )
        candidates.append(_best_sets(counts, base, settings))
    return _choose(candidates, base, settings)


def explained_claims(explained: Explained, evidence: PartEvidence) -> list[Claim]:
    """The chosen claims, one per latent."""
    return claims_of(explained.table, evidence.vocabulary.size)


def base_rates(evidence: PartEvidence) -> _Base:
    """Each latent's firings on the rows for explaining and the nearest rate of the code.

    Half a firing is added, so that a latent that never fired there is rare, not impossible.
    """
    latent, value = evidence.explain.latent, evidence.explain.value
    count = np.bincount(latent, minlength=evidence.n_latents)
    rows, positions = evidence.explain_tokens.shape
    places = rows * (positions - 1)
    return _Base(
        count=count,
        value=sum_by(latent, value, evidence.n_latents),
        places=places,
        rate=quantise_rate((count + 0.5) / (places + 1)),
    )


def _fit_rates(
    counts: Tally, rate: Float[np.ndarray, " latents"], strength: float
) -> Float[np.ndarray, " pairs"]:
    """The member rate under which the counts, with the prior's added, are shortest to say."""
    fired = counts.fired + strength * rate[counts.latent]
    total = counts.total + strength
    best = np.full(len(fired), np.inf)
    chosen = np.zeros(len(fired))
    for member_rate in MEMBER_RATES:
        bits = -(fired * np.log2(member_rate) + (total - fired) * np.log2(1 - member_rate))
        better = bits < best
        best = np.where(better, bits, best)
        chosen[better] = member_rate
    return chosen


def _best_sets(counts: Tally, base: _Base, settings: ExplainSettings) -> _Candidate:
    """For each latent the set of keys whose savings, less the bits of the set, are largest."""
    n = len(base.count)
    fitted = _fit_rates(counts, base.rate, settings.prior_strength)
    rate = base.rate
    cost = set_bits_up_to(counts.universe, min(settings.most_members, counts.universe))
    listed_bits = firing_bits(counts.fired, counts.total, fitted) + MEMBER_BITS
    pair = np.zeros(0, dtype=np.int64)
    likelier = fitted > rate[counts.latent]
    for listable in (likelier, np.ones_like(likelier)):
        unlisted = firing_bits(counts.fired, counts.total, rate[counts.latent])
        gain = np.where(listable, unlisted - listed_bits, 0.0)
        pair = _best_prefix(counts.latent, gain, cost)
        owner = counts.latent[pair]
        fired = sum_by(owner, counts.fired[pair], n)
        total = sum_by(owner, counts.total[pair], n)
        left = (base.count - fired + 0.5) / (base.places - total + 1)
        rate = np.where(total > 0, quantise_rate(left), base.rate)
    size = np.bincount(owner, minlength=n)
    bits = sum_by(owner, listed_bits[pair], n)
    bits += np.where(size > 0, cost[np.maximum(size - 1, 0)], 0.0)
    bits += firing_bits(base.count - fired, base.places - total, rate)
    saved = firing_bits(base.count, np.full(n, base.places), base.rate) - bits
    gain = firing_bits(counts.fired[pair], counts.total[pair], rate[owner]) - listed_bits[pair]
    return _Candidate(counts, pair, fitted[pair], gain, rate, np.where(size > 0, saved, 0.0))


def _best_prefix(
    latent: Int[np.ndarray, " pairs"],
    gain: Float[np.ndarray, " pairs"],
    cost: Float[np.ndarray, " sizes"],
) -> Int[np.ndarray, " members"]:
    """Pairs to list: per latent the most gainful, as many as pay for the set they make."""
    useful = np.flatnonzero(gain > 0)
    order = useful[np.lexsort((-gain[useful], latent[useful]))]
    if not len(order):
        return order
    owner, ordered = latent[order], gain[order]
    begin = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    length = np.diff(np.r_[begin, len(owner)])
    rank = np.arange(len(owner)) - np.repeat(begin, length)
    cumulative = np.cumsum(ordered)
    before = np.repeat(cumulative[begin] - ordered[begin], length)
    net = cumulative - before - cost[np.minimum(rank, len(cost) - 1)]
    net[rank >= len(cost)] = -np.inf
    best = np.maximum.reduceat(net, begin)
    reached = np.where(net == np.repeat(best, length), rank, -1)
    last = np.where(best > 0, np.maximum.reduceat(reached, begin), -1)
    return order[rank <= np.repeat(last, length)]


def _choose(candidates: Sequence[_Candidate], base: _Base, settings: ExplainSettings) -> Explained:
    n = len(base.count)
    saved = np.stack([np.zeros(n)] + [candidate.saved for candidate in candidates])
    winner = saved.argmax(axis=0) - 1
    number = np.array([RULE_KINDS.index(kind) for kind in settings.kinds] + [NO_RULE])
    rate = base.rate.copy()
    chosen: list[_Members] = []
    for index, candidate in enumerate(candidates):
        mine = winner == index
        rate[mine] = candidate.rate[mine]
        chosen.append(_members(candidate, mine))
    members = _joined(chosen)
    likelier = members.probability > rate[members.latent]
    matched = [
        sum_by(members.latent[likelier], field[likelier], n).astype(np.int64)
        for field in (members.fired, members.total)
    ]
    strength = _otherwise_activation(members, base)
    relative = members.value / np.maximum(members.fired, 1)
    # A key at which the latent never fired (listed as unlikely) tells nothing of the strength.
    relative = np.where(members.fired > 0, relative, strength[members.latent])
    table = RuleTable(
        kind=number[winner],
        otherwise_probability=rate,
        otherwise_activation=strength,
        indptr=np.concatenate([[0], np.cumsum(np.bincount(members.latent, minlength=n))]),
        key=members.key,
        probability=members.probability,
        activation=quantise_relative(relative, strength[members.latent]),
    )
    return Explained(table, base.rate, saved.max(axis=0), matched[0], matched[1], base.count)


@dataclass(frozen=True)
class _Members:
    latent: Int[np.ndarray, " members"]
    key: Int[np.ndarray, " members"]
    probability: Float[np.ndarray, " members"]
    gain: Float[np.ndarray, " members"]
    fired: Int[np.ndarray, " members"]
    total: Int[np.ndarray, " members"]
    value: Float[np.ndarray, " members"]


def _members(candidate: _Candidate, mine: Bool[np.ndarray, " latents"]) -> _Members:
    counts = candidate.tally
    keep = mine[counts.latent[candidate.pair]]
    pair = candidate.pair[keep]
    return _Members(
        latent=counts.latent[pair],
        key=counts.key[pair],
        probability=candidate.probability[keep],
        gain=candidate.gain[keep],
        fired=counts.fired[pair],
        total=counts.total[pair],
        value=counts.value[pair],
    )


def _joined(chosen: Sequence[_Members]) -> _Members:
    """All members, by latent, those that save most first."""
    joined = {
        name: np.concatenate([getattr(members, name) for members in chosen])
        for name in ("latent", "key", "probability", "gain", "fired", "total", "value")
    }
    order = np.lexsort((joined["key"], -joined["gain"], joined["latent"]))
    return _Members(**{name: field[order] for name, field in joined.items()})


def _otherwise_activation(members: _Members, base: _Base) -> Float[np.ndarray, " latents"]:
    """Mean activation of the firings at unlisted keys, or of all where there are none."""
    n = len(base.count)
    count = base.count - sum_by(members.latent, members.fired, n)
    value = base.value - sum_by(members.latent, members.value, n)
    rest = value / np.maximum(count, 1)
    everything = base.value / np.maximum(base.count, 1)
    return quantise_activation(np.where(count > 0.5, rest, everything))
