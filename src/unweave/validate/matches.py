"""Where the rules of a part match a text, counted without spelling out tokens times latents.

All places that a rule gives the same prediction form one group: one per listed key, and one for
everything else. How many places a group has depends on the text alone and how many of them fired
on the firings alone, so every score is a sum over groups.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer

from unweave.describe.contexts import RULE_KINDS, context_keys
from unweave.describe.evidence import Firings
from unweave.describe.rules import NO_RULE, RuleTable
from unweave.describe.tally import sum_by
from unweave.describe.vocabulary import Vocabulary


@dataclass(frozen=True)
class Keyed:
    """A text with the key of every place under every kind of claim that the rules use."""

    keys: Int[np.ndarray, "kinds rows pos"]
    """Keys; -1 at position 0 and for kinds that no rule uses."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.keys.shape[1]

    @property
    def places(self) -> int:
        """Places where a latent could fire: all but position 0."""
        return self.keys.shape[1] * (self.keys.shape[2] - 1)


@dataclass(frozen=True)
class Groups:
    """Groups of equally predicted places: the members of all rules, then one group per latent."""

    latent: Int[np.ndarray, " groups"]
    """Latent."""
    probability: Float[np.ndarray, " groups"]
    """Predicted probability of firing."""
    activation: Float[np.ndarray, " groups"]
    """Predicted activation of a firing."""
    total: Int[np.ndarray, " groups"]
    """Number of places."""
    fired: Int[np.ndarray, " groups"]
    """How many of them fired."""
    value: Float[np.ndarray, " groups"]
    """Sum of their activations."""
    of_firing: Int[np.ndarray, " firings"]
    """Group of each firing."""


def keyed_text(
    table: RuleTable, tokens: Integer[np.ndarray, "rows pos"], vocabulary: Vocabulary
) -> Keyed:
    """Compute the keys that the rules need."""
    keys = np.full((len(RULE_KINDS), *tokens.shape), -1, dtype=np.int64)
    for number, kind in enumerate(RULE_KINDS):
        if np.any(table.kind == number):
            keys[number] = context_keys(kind, tokens, vocabulary)
    return Keyed(keys)


class _Lookup(NamedTuple):
    member: Int[np.ndarray, " items"]
    found: np.ndarray


def _member_of(
    table: RuleTable, latent: Int[np.ndarray, " items"], key: Int[np.ndarray, " items"]
) -> _Lookup:
    """The member of the latent's rule that lists the key, where one does."""
    if not len(table.key):
        return _Lookup(np.zeros(len(key), dtype=np.int64), np.zeros(len(key), dtype=bool))
    span = max(int(table.key.max()), int(key.max(initial=0))) + 2
    code = table.member_latent * span + table.key + 1
    order = np.argsort(code, kind="stable")
    wanted = latent * span + key + 1
    slot = np.searchsorted(code[order], wanted).clip(max=len(order) - 1)
    return _Lookup(order[slot], code[order][slot] == wanted)


def group_places(table: RuleTable, text: Keyed, firings: Firings) -> Groups:
    """Count places and firings of every group; exact."""
    n, members = table.n_latents, len(table.key)
    ruled = np.flatnonzero(table.kind[firings.latent] != NO_RULE)
    kind = table.kind[firings.latent[ruled]]
    key = text.keys[kind, firings.row[ruled], firings.position[ruled]]
    lookup = _member_of(table, firings.latent[ruled], key)
    of_firing = members + firings.latent
    of_firing[ruled[lookup.found]] = lookup.member[lookup.found]
    fired = np.bincount(of_firing, minlength=members + n)
    value = sum_by(of_firing, firings.value, members + n)
    listed = _member_totals(table, text)
    owner = table.member_latent
    rest = text.places - sum_by(owner, listed, n).astype(np.int64)
    return Groups(
        latent=np.concatenate([owner, np.arange(n)]),
        probability=np.concatenate([table.probability, table.otherwise_probability]),
        activation=np.concatenate([table.activation, table.otherwise_activation]),
        total=np.concatenate([listed, rest]),
        fired=fired,
        value=value,
        of_firing=of_firing,
    )


def _member_totals(table: RuleTable, text: Keyed) -> Int[np.ndarray, " members"]:
    """How many places of the text each member's key has."""
    totals = np.zeros(len(table.key), dtype=np.int64)
    for number, kind in enumerate(RULE_KINDS):
        member = table.members_of(kind)
        if not len(member):
            continue
        present, count = np.unique(text.keys[number, :, 1:], return_counts=True)
        slot = np.searchsorted(present, table.key[member]).clip(max=len(present) - 1)
        totals[member] = np.where(present[slot] == table.key[member], count[slot], 0)
    return totals


def sum_by_place(
    table: RuleTable, text: Keyed, weight: Float[np.ndarray, " members"]
) -> Float[np.ndarray, "rows pos"]:
    """For every place the sum of `weight` over all members that match it."""
    result = np.zeros(text.keys.shape[1:])
    for number, kind in enumerate(RULE_KINDS):
        member = table.members_of(kind)
        if not len(member):
            continue
        listed, index = np.unique(table.key[member], return_inverse=True)
        total = np.bincount(index, weights=weight[member])
        slot = np.searchsorted(listed, text.keys[number]).clip(max=len(listed) - 1)
        result += np.where(listed[slot] == text.keys[number], total[slot], 0.0)
    return result
