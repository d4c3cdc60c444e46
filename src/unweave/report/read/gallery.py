"""Which features are shown, by a rule that shows the bad ones too, and what is known of each."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from unweave.artifact.folder import Artifact
from unweave.artifact.layout import features_of
from unweave.report.facts import Described, Example, Feature, Gallery
from unweave.report.read.descriptions import read_scores, read_words_of
from unweave.report.read.examples import Passages, Wanted, chosen
from unweave.report.read.words import Words

TOTAL, MOST = 120, 6
"""Features on a page, and at most so many of one part."""
_GOLDEN = 0.6180339887498949
_TOKENS_SHOWN = 8
Table = Mapping[str, np.ndarray]


def read_gallery(artifact: Artifact, words: Words) -> Gallery | None:
    """The gallery, or None where the artifact has no feature tables."""
    folder = artifact.folder
    parts = [part for part in artifact.parts if features_of(folder, part).is_file()]
    if not parts:
        return None
    scores = read_scores(folder)
    passages = Passages(artifact, words)
    each = min(MOST, max(TOTAL // len(parts), 1))
    shown: list[Feature] = []
    for index, part in enumerate(parts[:: -(-len(parts) // TOTAL)]):
        aurocs = {s.latent: s.auroc for s in scores if s.part == part and s.auroc is not None}
        table = {name: tensor.numpy() for name, tensor in artifact.features(part).items()}
        latents = choose(table, aurocs, each, offset=(index + 1) * _GOLDEN % 1.0)
        names = [str(artifact.feature_id(part, latent)) for latent in latents]
        said = read_words_of(folder, names)
        firings = artifact.firings(part)
        for name, latent in zip(names, latents, strict=True):
            examples = [passages.example(firings, want) for want in _wanted(table, latent)]
            row = _Latent(table, latent, words)
            shown.append(_feature(name, part, row, examples, said.get(name)))
    return Gallery(
        features=tuple(shown),
        aurocs=tuple(score.auroc for score in scores if score.auroc is not None),
        controls=tuple(score.control for score in scores if score.control is not None),
    )


def choose(table: Table, aurocs: Mapping[int, float], each: int, *, offset: float) -> list[int]:
    """`each` latents of one part, evenly spread over the ranks of their descriptions' AUROC.

    Ranks (i + offset) / each of the scored latents that fire; `offset` in [0, 1) differs from part
    to part, so that over all parts no rank is favoured. Where none is scored, ranks of frequency.
    Best first.
    """
    alive = {int(latent) for latent in np.flatnonzero(table["count"] > 0)}
    score = {latent: auroc for latent, auroc in aurocs.items() if latent in alive}
    if not score:
        score = {latent: float(table["frequency"][latent]) for latent in alive}
    ranked = sorted(score, key=lambda latent: (score[latent], latent))
    each = min(each, len(ranked))
    places = [int((i + offset) / each * len(ranked)) for i in range(each)]
    return [ranked[place] for place in places][::-1]


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
    described: Described | None,
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
        described=described,
    )
