"""What the descriptions of a part predict its latents to be on any text: the semantic splice.

Pushed through the part's decoder in place of the true latents, these say how much of what the
network does survives in what is said about it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from unweave.describe.claims import Claim
from unweave.describe.contexts import RULE_KINDS, context_keys
from unweave.describe.describe import Description
from unweave.describe.rules import RuleTable, compile_claims
from unweave.describe.vocabulary import Vocabulary


@dataclass(frozen=True)
class PredictedLatents:
    """Expected activations: `value` where a rule matches, `background` everywhere else.

    At position 0 nothing is predicted and `background` does not apply either: a part emits its
    stored constant there. The expected output of the part at every other place is
    background @ W_dec + sum over the place's entries of excess * W_dec[latent] (+ bias).
    """

    token_indptr: Int[np.ndarray, " row_pos_plus_one"]
    """Entries of flat token i are token_indptr[i] : token_indptr[i+1]."""
    latent: Int[np.ndarray, " entries"]
    """Latent of each entry, rising within a token."""
    value: Float[np.ndarray, " entries"]
    """Expected activation, silence included: probability times activation."""
    excess: Float[np.ndarray, " entries"]
    """`value` less the latent's background; may be negative."""
    background: Float[np.ndarray, " latents"]
    """Expected activation of every latent where its rule does not match."""


def predicted_latents(
    claims: Sequence[Claim] | Sequence[Description] | RuleTable,
    tokens: Integer[np.ndarray, "rows pos"],
    vocabulary: Vocabulary,
) -> PredictedLatents:
    """Expected activation of every latent at every token, sparse; costs what the matches cost.

    Compile the claims once (`compile_claims`) when predicting many batches.
    """
    table = claims if isinstance(claims, RuleTable) else _table(claims, vocabulary.size)
    found = [_matches(table, number, tokens, vocabulary) for number in range(len(RULE_KINDS))]
    place = np.concatenate([matches.place for matches in found])
    member = np.concatenate([matches.member for matches in found])
    latent = table.member_latent[member]
    order = np.argsort(place * table.n_latents + latent, kind="stable")
    latent, member = latent[order], member[order]
    background = table.otherwise_probability * table.otherwise_activation
    value = (table.probability * table.activation)[member]
    return PredictedLatents(
        token_indptr=np.concatenate([[0], np.cumsum(np.bincount(place, minlength=tokens.size))]),
        latent=latent,
        value=value,
        excess=value - background[latent],
        background=background,
    )


def _table(claims: Sequence[Claim] | Sequence[Description], vocab_size: int) -> RuleTable:
    plain = [claim.claim if isinstance(claim, Description) else claim for claim in claims]
    return compile_claims(plain, vocab_size)


class _Matches(NamedTuple):
    place: Int[np.ndarray, " matches"]
    member: Int[np.ndarray, " matches"]


def _matches(
    table: RuleTable, kind: int, tokens: Integer[np.ndarray, "rows pos"], vocabulary: Vocabulary
) -> _Matches:
    """All pairs of a place and a member of one kind that lists its key."""
    member = table.members_of(RULE_KINDS[kind])
    nothing = np.zeros(0, dtype=np.int64)
    if not len(member):
        return _Matches(nothing, nothing)
    member = member[np.argsort(table.key[member], kind="stable")]
    listed = table.key[member]
    keys = context_keys(RULE_KINDS[kind], tokens, vocabulary).ravel()
    begin, end = np.searchsorted(listed, keys), np.searchsorted(listed, keys, side="right")
    size = end - begin
    place = np.repeat(np.arange(len(keys)), size)
    offset = np.arange(len(place)) - np.repeat(np.cumsum(size) - size, size)
    return _Matches(place, member[np.repeat(begin, size) + offset])
