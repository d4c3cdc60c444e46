"""Describe a part: text, a claim a machine can check, and what it costs and saves."""

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from unweave.describe.claims import Claim
from unweave.describe.evidence import PartEvidence
from unweave.describe.explain import ExplainSettings, explain_part, explained_claims
from unweave.describe.rules import NO_RULE
from unweave.describe.wording import common_tokens, sentence


@dataclass(frozen=True)
class HeldoutScores:
    """How one description does on text it has not seen; nan where it cannot be said."""

    auroc: float
    """Chance that a firing place is ranked above a silent one, ties half."""
    correlation: float
    """Pearson correlation of the expected with the true activation."""
    bits_explained: float
    """Bits fewer to say where the latent fires than at its base rate; may be negative."""
    bits_total: float
    """Bits to say where the latent fires at its base rate."""
    precision: float
    """Share of the places the rule points at where the latent fires."""
    recall: float
    """Share of the firings at places the rule points at."""


@dataclass(frozen=True)
class Description:
    """What is said of one latent, and what is behind it."""

    part: str
    """Part, as `L3.mlp`."""
    latent: int
    """Index of the latent in the part."""
    digest: str
    """First six hex digits of the dictionary's hash; empty if not known."""
    text: str
    """The claim for a person to read, and the promoted tokens; escaped for a terminal."""
    claim: Claim
    """The claim for a machine to check."""
    bits: float
    """Length of the claim under the rule code."""
    saved: float
    """Bits saved on the rows for explaining, after paying for the rule."""
    count: int
    """Firings on the rows for explaining."""
    precision: float
    """On the rows for explaining: share of the places pointed at where the latent fires."""
    recall: float
    """On the rows for explaining: share of the firings at the places pointed at."""
    scores: HeldoutScores | None = None
    """Scores on held-out rows (`unweave.validate.semantic.with_scores` fills them in)."""
    round: int = 1
    """1: from the latent's own firings alone."""

    @property
    def id(self) -> str:
        """Feature id, as `L7.mlp/1234@3fa9c2`."""
        return f"{self.part}/{self.latent}" + (f"@{self.digest}" if self.digest else "")

    @property
    def kind(self) -> str:
        """Kind of the claim."""
        return self.claim.kind


class DescribeSettings(BaseModel):
    """Settings of the description of a part."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    explain: ExplainSettings = ExplainSettings()
    """How claims are chosen."""


def describe_part(
    evidence: PartEvidence, settings: DescribeSettings | None = None
) -> list[Description]:
    """Describe every latent of a part, the dead too, from the rows for explaining.

    Takes a second a part of 4,608 latents and 400,000 firings on one core.
    """
    settings = settings or DescribeSettings()
    found = explain_part(evidence, settings.explain)
    claims = explained_claims(found, evidence)
    tokens, firings = evidence.explain_tokens, evidence.explain
    places = len(tokens) * (tokens.shape[1] - 1)
    bare = found.table.kind[firings.latent] == NO_RULE
    common = common_tokens(
        firings.latent[bare],
        tokens[firings.row[bare], firings.position[bare]].astype(np.int64),
        evidence.n_latents,
        evidence.vocabulary.size,
    )
    count, saved = found.count.tolist(), found.saved.tolist()
    fired, total = found.matched_firings.tolist(), found.matched_total.tolist()
    return [
        Description(
            part=evidence.part,
            latent=latent,
            digest=evidence.digest,
            text=sentence(
                claim,
                evidence.vocabulary,
                count=count[latent],
                places=places,
                matched_firings=fired[latent],
                matched_total=total[latent],
                promoted=None if evidence.promoted is None else evidence.promoted[latent],
                common=common[latent],
            ),
            claim=claim,
            bits=claim.bits(evidence.vocabulary.size),
            saved=saved[latent],
            count=count[latent],
            precision=fired[latent] / total[latent] if total[latent] else 0.0,
            recall=fired[latent] / count[latent] if count[latent] else 0.0,
        )
        for latent, claim in enumerate(claims)
    ]
