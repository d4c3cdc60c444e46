"""Which features are shown, by a rule that shows the bad ones too, and what is known of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unweave.artifact.feature_id import FeatureId
from unweave.artifact.folder import Artifact
from unweave.artifact.layout import features_of
from unweave.report.facts import Described, Example, Feature, Gallery
from unweave.report.read.examples import Passages, Wanted, chosen
from unweave.report.read.words import Words

TOTAL, MOST = 120, 6
"""Features on a page, and at most so many of one part."""
_GOLDEN = 0.6180339887498949
_TOKENS_SHOWN = 8
Table = Mapping[str, np.ndarray]


def read_gallery(
    artifact: Artifact, words: Words, described: Mapping[str, Described]
) -> Gallery | None:
    """The gallery, or None where the artifact has no feature tables; `described` by feature id."""
    parts = [p for p in artifact.parts if features_of(artifact.folder, p).is_file()]
    if not parts:
        return None
    passages = Passages(artifact, words)
    by_part = _by_part(described)
    each = min(MOST, max(TOTAL // len(parts), 1))
    shown: list[Feature] = []
    for index, part in enumerate(parts[:: -(-len(parts) // TOTAL)]):
        mine = by_part.get(part, {})
        table = {name: tensor.numpy() for name, tensor in artifact.features(part).items()}
        firings = artifact.firings(part)
        for latent in choose(table, mine, each, offset=(index + 1) * _GOLDEN % 1.0):
            examples = [passages.example(firings, want) for want in _wanted(table, latent)]
            name = str(artifact.feature_id(part, latent))
            shown.append(_feature(name, part, _Latent(table, latent, words), examples, mine))
    scored = described.values()
    return Gallery(
        features=tuple(shown),
        aurocs=tuple(one.auroc for one in scored if one.auroc is not None),
        controls=tuple(one.control for one in scored if one.control is not None),
    )


def choose(
    table: Table, described: Mapping[int, Described], each: int, *, offset: float
) -> list[int]:
    """`each` latents of one part, evenly spread over the ranks of their descriptions' AUROC.

    Ranks (i + offset) / each of the scored latents that fire; `offset` in [0, 1) differs from part
    to part, so that over all parts no rank is favoured. Where none is scored, ranks of frequency.
    Best first.
    """
    alive = {int(latent) for latent in np.flatnonzero(table["count"] > 0)}
    score = {
        latent: one.auroc
        for latent, one in described.items()
        if one.auroc is not None and latent in alive
    }
    if not score:
        score = {latent: float(table["frequency"][latent]) for latent in alive}
    ranked = sorted(score, key=lambda latent: (score[latent], latent))
    each = min(each, len(ranked))
    places = [int((i + offset) / each * len(ranked)) for i in range(each)]
    return [ranked[place] for place in places][::-1]


def _by_part(described: Mapping[str, Described]) -> dict[str, dict[int, Described]]:
    grouped: dict[str, dict[int, Described]] = {}
    for name, one in described.items():
        part, latent, _ = FeatureId.parse(name)
        grouped.setdefault(part, {})[latent] = one
    return grouped


def _wanted(table: Table, latent: int) -> list[Wanted]:
    places, bands = table["example_position"][latent], table["example_band"]
    greatest = float(table["max_active"][latent])
    return [
        Wanted(latent, int(places[slot]), int(bands[slot]), greatest)
        for slot in chosen(bands, places)
    ]


class _Latent(NamedTuple):
    """A row of a part's table of features."""

    table: Table
    latent: int
    words: Words

    def number(self, name: str) -> float:
        return float(self.table[name][self.latent])

    def effects(self, kind: str) -> tuple[tuple[str, float], ...]:
        """(token, effect on its logit) of the tokens raised or lowered most."""
        tokens = self.table[f"{kind}_token"][self.latent][:_TOKENS_SHOWN].tolist()
        effects = self.table[f"{kind}_logit"][self.latent][:_TOKENS_SHOWN].tolist()
        pairs = zip(tokens, effects, strict=True)
        return tuple((self.words[token], effect) for token, effect in pairs if token >= 0)


def _feature(
    name: str,
    part: str,
    row: _Latent,
    examples: Sequence[Example],
    described: Mapping[int, Described],
) -> Feature:
    return Feature(
        id=name,
        part=part,
        frequency=row.number("frequency"),
        mean=row.number("mean_active"),
        greatest=row.number("max_active"),
        histogram=tuple(row.table["histogram"][row.latent].tolist()),
        edges=tuple(row.table["histogram_edges"].tolist()),
        examples=tuple(examples),
        promoted=row.effects("promoted"),
        suppressed=row.effects("suppressed"),
        described=described.get(row.latent),
    )
