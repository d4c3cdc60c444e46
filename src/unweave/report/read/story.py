"""The whole page's facts from an artifact's folder."""

from pathlib import Path

from unweave.artifact.folder import open_artifact
from unweave.report.facts import Story
from unweave.report.read.gallery import read_gallery
from unweave.report.read.graph import read_graph
from unweave.report.read.samples import read_samples
from unweave.report.read.words import read_words


def read_story(folder: Path) -> Story:
    """Everything the page tells.

    UserError when the manifest or the scores are missing, or anything that is there is damaged.
    """
    artifact = open_artifact(folder)
    scores = artifact.scores()
    words = read_words(folder)
    return Story(
        manifest=artifact.manifest,
        scores=scores,
        gallery=read_gallery(artifact, words),
        graph=read_graph(artifact, words),
        samples=read_samples(folder),
    )
