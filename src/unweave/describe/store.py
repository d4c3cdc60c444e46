"""Descriptions as the artifact stores them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from unweave.artifact.descriptions import Description as Stored
from unweave.artifact.feature_id import FeatureId
from unweave.describe.describe import Description


def stored(descriptions: Iterable[Description]) -> Iterator[Stored]:
    """Each description as a row of descriptions.sqlite; scores that cannot be said are left out.

    `explain_*` scores are on the rows for explaining, the others on held-out rows.
    """
    for description in descriptions:
        scores = {
            "explain_precision": description.precision,
            "explain_recall": description.recall,
            "explain_bits_saved": description.saved,
        }
        if description.scores is not None:
            scores.update(asdict(description.scores))
        yield Stored(
            feature=FeatureId(description.part, description.latent, description.digest),
            text=description.text,
            claim=description.claim.model_dump(mode="json"),
            scores={name: value for name, value in scores.items() if math.isfinite(value)},
            bits=description.bits,
            round=description.round,
            evidence={"firings": description.count},
        )
