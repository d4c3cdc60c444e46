"""The claims of a whole part as arrays: what thousands of claims are checked and applied with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from unweave.describe.claims import CLAIM, Claim, DenseClaim, Rule, UnexplainedClaim
from unweave.describe.contexts import REPEATS, RULE_KINDS, RuleKind
from unweave.describe.vocabulary import CLASSES

NO_RULE = -1


@dataclass(frozen=True)
class RuleTable:
    """One claim per latent; the listed keys of all of them, one latent after the other."""

    kind: Int[np.ndarray, " latents"]
    """Index into `RULE_KINDS`, or -1 for a claim that lists nothing."""
    otherwise_probability: Float[np.ndarray, " latents"]
    """Probability of firing where no listed key applies."""
    otherwise_activation: Float[np.ndarray, " latents"]
    """Activation of the firings there."""
    indptr: Int[np.ndarray, " latents_plus_one"]
    """Members of latent i are indptr[i] : indptr[i+1]."""
    key: Int[np.ndarray, " members"]
    """Listed key, in the numbering of the claim's kind."""
    probability: Float[np.ndarray, " members"]
    """Probability of firing at the key."""
    activation: Float[np.ndarray, " members"]
    """Activation of the firings at the key."""

    @property
    def n_latents(self) -> int:
        """Number of claims."""
        return len(self.kind)

    @property
    def member_latent(self) -> Int[np.ndarray, " members"]:
        """Latent that each member belongs to."""
        return np.repeat(np.arange(self.n_latents), np.diff(self.indptr))

    def members_of(self, kind: RuleKind) -> Int[np.ndarray, " chosen"]:
        """Members of the claims of one kind."""
        return np.flatnonzero(self.kind[self.member_latent] == RULE_KINDS.index(kind))

    def shuffled(
        self,
        source: Integer[np.ndarray, " latents"],
        otherwise_probability: Float[np.ndarray, " latents"],
    ) -> "RuleTable":
        """Latent i gets the rule of latent source[i] and the base rate given for it."""
        size = np.diff(self.indptr)[source]
        indptr = np.concatenate([[0], np.cumsum(size)])
        member = np.repeat(self.indptr[:-1][source] - indptr[:-1], size) + np.arange(indptr[-1])
        return RuleTable(
            kind=self.kind[source],
            otherwise_probability=otherwise_probability,
            otherwise_activation=self.otherwise_activation[source],
            indptr=indptr,
            key=self.key[member],
            probability=self.probability[member],
            activation=self.activation[member],
        )


def compile_claims(claims: Sequence[Claim], vocab_size: int) -> RuleTable:
    """The arrays that say what the claims say; latent i is claims[i]."""
    rules = [claim for claim in claims if isinstance(claim, Rule)]
    keys = [rule.keys(vocab_size) for rule in rules]
    probability = [value for rule in rules for value in rule.probability]
    activation = [value for rule in rules for value in rule.activation]
    number: dict[str, int] = {kind: index for index, kind in enumerate(RULE_KINDS)}
    return RuleTable(
        kind=np.array([number.get(claim.kind, NO_RULE) for claim in claims], dtype=np.int64),
        otherwise_probability=np.array([claim.otherwise_probability for claim in claims]),
        otherwise_activation=np.array([claim.otherwise_activation for claim in claims]),
        indptr=np.concatenate([[0], np.cumsum([claim.size for claim in claims])]).astype(np.int64),
        key=np.concatenate([*keys, np.zeros(0, dtype=np.int64)]),
        probability=np.array(probability, dtype=np.float64),
        activation=np.array(activation, dtype=np.float64),
    )


def claims_of(table: RuleTable, vocab_size: int) -> list[Claim]:
    """The claims that the arrays say."""
    probability, activation = table.probability.tolist(), table.activation.tolist()
    otherwise = zip(
        table.otherwise_probability.tolist(), table.otherwise_activation.tolist(), strict=True
    )
    keys, indptr = table.key.tolist(), table.indptr.tolist()
    claims: list[Claim] = []
    for latent, (kind, (rate, strength)) in enumerate(
        zip(table.kind.tolist(), otherwise, strict=True)
    ):
        begin, end = indptr[latent], indptr[latent + 1]
        if kind == NO_RULE:
            empty = DenseClaim if rate >= 0.5 else UnexplainedClaim
            claims.append(empty(otherwise_probability=rate, otherwise_activation=strength))
            continue
        claims.append(
            CLAIM.validate_python(
                {
                    "kind": RULE_KINDS[kind],
                    **_listed(RULE_KINDS[kind], keys[begin:end], vocab_size),
                    "probability": probability[begin:end],
                    "activation": activation[begin:end],
                    "otherwise_probability": rate,
                    "otherwise_activation": strength,
                }
            )
        )
    return claims


def _listed(kind: RuleKind, keys: list[int], vocab_size: int) -> dict[str, list[object]]:
    """The field that lists the keys, as the claim stores it."""
    match kind:
        case "token" | "previous_token":
            return {"tokens": [*keys]}
        case "bigram":
            return {"pairs": [divmod(key, vocab_size) for key in keys]}
        case "token_class" | "previous_class":
            return {"names": [CLASSES[key] for key in keys]}
        case "class_pair":
            pairs = [divmod(key, len(CLASSES)) for key in keys]
            return {"pairs": [(CLASSES[before], CLASSES[now]) for before, now in pairs]}
        case "position":
            return {"octaves": [*keys]}
        case "repeat":
            return {"names": [REPEATS[key] for key in keys]}
