"""A finished artifact, opened: each thing it holds, checked as it is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from unweave.artifact import layout
from unweave.artifact.arrays import open_array
from unweave.artifact.descriptions import Descriptions
from unweave.artifact.feature_id import FeatureId
from unweave.artifact.features import load_features
from unweave.artifact.firings import Firings
from unweave.artifact.manifest import Manifest, read_manifest
from unweave.artifact.reading import json_in
from unweave.artifact.scores import Scores, read_scores
from unweave.artifact.tables import EDGES, read_table
from unweave.artifact.tensors import load_tensors
from unweave.errors import UserError


@dataclass(frozen=True)
class Artifact:
    """An artifact's folder with its manifest; every reader raises UserError on damage."""

    folder: Path
    """Where it lies."""
    manifest: Manifest
    """What it says of itself."""

    @property
    def parts(self) -> list[str]:
        """Names of the parts, by layer."""
        return self.manifest.parts

    def scores(self) -> Scores:
        """Everything that was measured."""
        return read_scores(self.folder / layout.SCORES)

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part."""
        return load_tensors(layout.weights_of(self.folder, part))

    def feature_id(self, part: str, latent: int) -> FeatureId:
        """The id of one latent of one part."""
        weights = layout.weights_of(self.folder, part)
        record = self.manifest.files.get(weights.relative_to(self.folder).as_posix())
        if record is None:
            raise UserError(f"{self.folder} has no part {part!r}: it has {', '.join(self.parts)}")
        return FeatureId(part, latent, record.sha256[:6])

    def tokens(self) -> Int32[np.ndarray, "rows pos"]:
        """The evidence text as token ids."""
        return open_array(self.folder / layout.TOKENS, dtype=np.int32, ndim=2)

    def token_text(self) -> list[str]:
        """Each token of the vocabulary as text."""
        words = json_in(self.folder / layout.TOKEN_TEXT)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{self.folder / layout.TOKEN_TEXT} is no list of strings")
        return words

    def firings(self, part: str) -> Firings:
        """Where one part's latents fired on the evidence text."""
        return Firings.open(layout.firings_of(self.folder, part))

    def features(self, part: str) -> dict[str, Tensor]:
        """One part's table of features; see `artifact.features`."""
        return load_features(layout.features_of(self.folder, part))

    def edges(self) -> dict[str, np.ndarray]:
        """The interaction graph, column by column; see `artifact.tables.EDGES`."""
        return read_table(self.folder / layout.EDGES_TABLE, EDGES)

    def descriptions(self) -> Descriptions:
        """The store of descriptions; close it after use."""
        return Descriptions(self.folder / layout.DESCRIPTIONS)


def open_artifact(folder: Path) -> Artifact:
    """Open a finished artifact; UserError when `folder` is none."""
    return Artifact(folder, read_manifest(folder))
