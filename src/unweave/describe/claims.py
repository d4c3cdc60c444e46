"""Claims: what a machine can check of a description.

A claim gives every token of a text a probability that its latent fires there and an activation
in case it does. Claims differ in what they look at (`kind`); all but the last two list keys of
their kind, each with its own probability and activation, and give one pair for everything else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Integer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from unweave.describe.code import CLAIM_BITS, rule_bits
from unweave.describe.contexts import OCTAVES, REPEATS, RuleKind, context_keys, universe
from unweave.describe.vocabulary import CLASSES, Vocabulary

Probability = Annotated[float, Field(gt=0, lt=1)]
Activation = Annotated[float, Field(ge=0)]
Token = Annotated[int, Field(ge=0)]


def _known_class(name: str) -> str:
    if name not in CLASSES:
        raise ValueError(f"no token class is called {name!r}")
    return name


ClassName = Annotated[str, AfterValidator(_known_class)]


class Prediction(NamedTuple):
    """What a claim says of every token."""

    probability: Float[np.ndarray, "rows pos"]
    """Probability that the latent fires; 0 at position 0."""
    activation: Float[np.ndarray, "rows pos"]
    """Expected activation, silence included; 0 at position 0."""


class _Claim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    otherwise_probability: Probability
    """Probability of firing where no listed key applies."""
    otherwise_activation: Activation
    """Activation of the firings there."""

    def predict(
        self, tokens: Integer[np.ndarray, "rows pos"], vocabulary: Vocabulary
    ) -> Prediction:
        """Probability of firing and expected activation at every token."""
        probability = np.full(tokens.shape, self.otherwise_probability)
        probability[:, 0] = 0
        return Prediction(probability, probability * self.otherwise_activation)

    def bits(self, vocab_size: int) -> float:
        """Length under the rule code (see `unweave.describe.code`)."""
        return float(CLAIM_BITS)

    @property
    def size(self) -> int:
        """How many keys the claim lists."""
        return 0


class UnexplainedClaim(_Claim):
    """No rule was worth its bits: the latent is predicted to fire at its base rate everywhere."""

    kind: Literal["unexplained"] = "unexplained"


class DenseClaim(_Claim):
    """The latent fires at most tokens; which not, no rule was worth its bits for."""

    kind: Literal["dense"] = "dense"


class Rule(_Claim, ABC):
    """A claim that lists keys of its kind, each with its own probability and activation."""

    kind: RuleKind
    probability: tuple[Probability, ...] = Field(min_length=1)
    """Probability of firing at each listed key."""
    activation: tuple[Activation, ...]
    """Activation of the firings at each listed key."""

    @model_validator(mode="after")
    def _aligned(self) -> "Rule":
        listed = len(self.members())
        if not listed == len(self.probability) == len(self.activation):
            raise ValueError("a claim needs one probability and one activation for each key")
        if len(set(self.members())) != listed:
            raise ValueError("a claim may list a key only once")
        return self

    @abstractmethod
    def members(self) -> Sequence[object]:
        """The listed keys as the claim stores them."""

    @abstractmethod
    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """The listed keys as numbers (see `unweave.describe.contexts`)."""

    @property
    def size(self) -> int:
        """How many keys the claim lists."""
        return len(self.probability)

    def bits(self, vocab_size: int) -> float:
        """Length under the rule code (see `unweave.describe.code`)."""
        return CLAIM_BITS + rule_bits(universe(self.kind, vocab_size), self.size)

    def predict(
        self, tokens: Integer[np.ndarray, "rows pos"], vocabulary: Vocabulary
    ) -> Prediction:
        """Probability of firing and expected activation at every token."""
        keys = self.keys(vocabulary.size)
        order = np.argsort(keys)
        here = context_keys(self.kind, tokens, vocabulary)
        slot = np.searchsorted(keys[order], here).clip(max=len(keys) - 1)
        listed = keys[order][slot] == here
        member = order[slot]
        probability = np.where(
            listed, np.array(self.probability)[member], self.otherwise_probability
        )
        activation = np.where(listed, np.array(self.activation)[member], self.otherwise_activation)
        probability[:, 0] = 0
        return Prediction(probability, probability * activation)


class _TokenRule(Rule):
    tokens: tuple[Token, ...]
    """Token ids."""

    def members(self) -> Sequence[object]:
        """Token ids."""
        return self.tokens

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Token ids."""
        return np.array(self.tokens, dtype=np.int64)


class TokenClaim(_TokenRule):
    """The latent fires by what the current token is."""

    kind: Literal["token"] = "token"


class PreviousTokenClaim(_TokenRule):
    """The latent fires by what the token before is."""

    kind: Literal["previous_token"] = "previous_token"


class BigramClaim(Rule):
    """The latent fires at certain pairs of the token before and the current one."""

    kind: Literal["bigram"] = "bigram"
    pairs: tuple[tuple[Token, Token], ...]
    """Pairs (token before, current token)."""

    def members(self) -> Sequence[object]:
        """Pairs of token ids."""
        return self.pairs

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Pairs as one number each."""
        return np.array(self.pairs, dtype=np.int64) @ np.array([vocab_size, 1])


class _ClassRule(Rule):
    names: tuple[ClassName, ...]
    """Names of classes."""

    def members(self) -> Sequence[object]:
        """Names."""
        return self.names

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Indices into `CLASSES`."""
        return np.array([CLASSES.index(name) for name in self.names], dtype=np.int64)


class TokenClassClaim(_ClassRule):
    """The latent fires by the class of the current token (numbers, prepositions, ...)."""

    kind: Literal["token_class"] = "token_class"


class PreviousClassClaim(_ClassRule):
    """The latent fires by the class of the token before."""

    kind: Literal["previous_class"] = "previous_class"


class ClassPairClaim(Rule):
    """The latent fires at certain pairs of classes of the token before and the current one."""

    kind: Literal["class_pair"] = "class_pair"
    pairs: tuple[tuple[ClassName, ClassName], ...]
    """Pairs (class of the token before, class of the current token)."""

    def members(self) -> Sequence[object]:
        """Pairs of names."""
        return self.pairs

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Pairs as one number each."""
        index = [CLASSES.index(a) * len(CLASSES) + CLASSES.index(b) for a, b in self.pairs]
        return np.array(index, dtype=np.int64)


class PositionClaim(Rule):
    """The latent fires by how far from the start of its row the token stands."""

    kind: Literal["position"] = "position"
    octaves: tuple[Annotated[int, Field(ge=0, lt=OCTAVES)], ...]
    """Octave i holds the positions 2^i .. 2^(i+1)-1; the row's start token is position 0."""

    def members(self) -> Sequence[object]:
        """Octaves."""
        return self.octaves

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Octaves."""
        return np.array(self.octaves, dtype=np.int64)


class RepeatClaim(Rule):
    """The latent fires by whether the row had the token, or its pair with the one before."""

    kind: Literal["repeat"] = "repeat"
    names: tuple[Literal["new", "seen", "pair seen"], ...]
    """`new` to the row, `seen` in it, or `pair seen`: seen after the same token."""

    def members(self) -> Sequence[object]:
        """Names."""
        return self.names

    def keys(self, vocab_size: int) -> Int[np.ndarray, " members"]:
        """Indices into `REPEATS`."""
        return np.array([REPEATS.index(name) for name in self.names], dtype=np.int64)


Claim = Annotated[
    TokenClaim
    | PreviousTokenClaim
    | BigramClaim
    | TokenClassClaim
    | PreviousClassClaim
    | ClassPairClaim
    | PositionClaim
    | RepeatClaim
    | DenseClaim
    | UnexplainedClaim,
    Field(discriminator="kind"),
]
"""Any claim, told apart by `kind`; `CLAIM.validate_json` reads one back."""
CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
