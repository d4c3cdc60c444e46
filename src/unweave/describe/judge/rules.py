"""Our own claims as a judge: offline, deterministic, and with nothing to be talked into.

Explains by the claim that shortens the message about the examples most (`unweave.describe.explain`)
and reads its own claim back; a passage is said to fire if one of its tokens does, more likely than
not, by what the claim says beyond its base rate.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from unweave.describe.claims import CLAIM, Claim
from unweave.describe.describe import describe_part
from unweave.describe.evidence import PartEvidence
from unweave.describe.judge.judge import NO_COSTS, Example, Passage, Unreadable
from unweave.describe.vocabulary import Vocabulary


class RulesJudge:
    """See the module. Its explanations are claims as JSON."""

    name = "rules"
    at_once = 1
    costs = NO_COSTS

    def __init__(self, vocabulary: Vocabulary, *, start: int = 0) -> None:
        """`start` stands before each passage, where claims say nothing."""
        self._vocabulary, self._start = vocabulary, start

    def explain(self, examples: Sequence[Example]) -> str:
        """The claim as JSON."""
        if not examples:
            raise Unreadable("no examples to explain")
        claim = describe_part(self._evidence(examples))[0].claim
        return CLAIM.dump_json(claim).decode("utf-8")

    def predict(self, explanation: str, passages: Sequence[Passage]) -> list[bool]:
        """By the claim that the explanation is."""
        try:
            claim: Claim = CLAIM.validate_json(explanation)
        except ValidationError as error:
            raise Unreadable(f"{explanation[:80]!r} is no claim") from error
        return [self._fires(claim, passage) for passage in passages]

    def _fires(self, claim: Claim, passage: Passage) -> bool:
        tokens = np.array([[self._start, *passage.tokens]], dtype=np.int64)
        told = claim.predict(tokens, self._vocabulary).probability[0, 1:]
        beyond = np.clip(told - claim.otherwise_probability, 0, 1)
        return bool(1 - np.prod(1 - beyond) > 0.5)

    def _evidence(self, examples: Sequence[Example]) -> PartEvidence:
        """The examples as rows of a text in which one latent fires."""
        longest = max(len(one.passage.tokens) for one in examples)
        shape = len(examples), longest + 1
        tokens = np.full(shape, self._start, dtype=np.int64)
        strength = np.zeros(shape)
        for row, one in enumerate(examples):
            length = len(one.passage.tokens)
            tokens[row, 1 : length + 1] = one.passage.tokens
            values = np.array(one.activations)
            strength[row, 1 : length + 1] = np.where(values > one.threshold, values, 0)
        fired = strength.ravel() > 0
        return PartEvidence(
            part="judged",
            tokens=tokens,
            explain_rows=len(examples),
            token_indptr=np.concatenate([[0], np.cumsum(fired)]),
            latent=np.zeros(int(fired.sum()), dtype=np.int64),
            value=strength.ravel()[fired],
            n_latents=1,
            vocabulary=self._vocabulary,
        )
