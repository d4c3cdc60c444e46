"""Words for parts: evidence, claims, explanations."""

from unweave.describe.claims import CLAIM, Claim
from unweave.describe.describe import (
    DescribeSettings,
    Description,
    HeldoutScores,
    describe_part,
)
from unweave.describe.evidence import Firings, PartEvidence
from unweave.describe.explain import ExplainSettings
from unweave.describe.features import feature_table
from unweave.describe.store import stored
from unweave.describe.vocabulary import Vocabulary, visible

__all__ = [
    "CLAIM",
    "Claim",
    "DescribeSettings",
    "Description",
    "ExplainSettings",
    "Firings",
    "HeldoutScores",
    "PartEvidence",
    "Vocabulary",
    "describe_part",
    "feature_table",
    "stored",
    "visible",
]
