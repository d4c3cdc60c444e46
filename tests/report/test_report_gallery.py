"""Features are chosen by the stated rule; examples and shades say what the numbers say."""

from pathlib import Path

import numpy as np
from report_artifact import Plan, write_artifact

from unweave.artifact.folder import open_artifact
from unweave.report.read.examples import chosen, shade
from unweave.report.read.gallery import choose
from unweave.report.read.graph import read_graph
from unweave.report.read.story import read_story
from unweave.report.read.words import Words, read_words
from unweave.report.sections.samples import agreement


def _table(n: int, dead: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    count = np.ones(n, np.int64)
    count[list(dead)] = 0
    return {"count": count, "frequency": np.linspace(0, 1, n)}


def test_chosen_features_are_spread_over_the_ranks_of_their_scores() -> None:
    aurocs = {latent: latent / 100 for latent in range(100)}
    assert choose(_table(100), aurocs, 4, offset=0.5) == [87, 62, 37, 12]
    assert choose(_table(100), aurocs, 2, offset=0.0) == [50, 0]


def test_over_parts_no_rank_is_favoured() -> None:
    aurocs = {latent: latent / 100 for latent in range(100)}
    picks = [
        pick
        for part in range(60)
        for pick in choose(_table(100), aurocs, 2, offset=(part + 1) * 0.6180339887 % 1)
    ]
    quarters = np.histogram(picks, [0, 25, 50, 75, 100])[0]
    assert quarters.min() >= 28
    assert quarters.max() <= 32


def test_dead_and_unscored_features_are_not_shown() -> None:
    aurocs = {latent: 0.5 for latent in range(6) if latent != 3}
    assert set(choose(_table(6, dead=(0, 1)), aurocs, 6, offset=0.2)) == {2, 4, 5}


def test_without_scores_the_frequency_ranks_decide() -> None:
    assert choose(_table(10), {}, 2, offset=0.5) == [7, 2]
    assert choose(_table(3, dead=(0, 1, 2)), {}, 2, offset=0.5) == []


def test_shades_grow_with_activation_and_never_vanish() -> None:
    assert [shade(value, 9.0) for value in (0.0, 0.01, 1.0, 4.5, 9.0, 99.0)] == [0, 1, 1, 5, 9, 9]
    assert shade(1.0, 0.0) == 9


def test_examples_come_from_the_top_and_from_the_bands_below() -> None:
    bands = np.repeat(np.arange(6), [10, 2, 2, 2, 2, 2])
    everywhere = np.arange(20)
    assert chosen(bands, everywhere) == [0, 1, 2, 10, 14, 18]
    few = np.where(everywhere < 2, 5, -1)
    assert chosen(bands, few) == [0, 1]


def test_the_planted_activations_are_in_the_examples(artifact: Path) -> None:
    story = read_story(artifact)
    assert story.gallery is not None
    opened = open_artifact(artifact)
    for feature in story.gallery.features[::5]:
        latent = int(feature.id.split("/")[1].split("@")[0])
        strongest = float(opened.firings(feature.part).of_latent(latent, 1).value[0])
        top = feature.examples[0]
        assert top.value == strongest
        assert [piece.value for piece in top.pieces if piece.peak] == [strongest]
        assert all((piece.value > 0) == (piece.level > 0) for piece in top.pieces)


def test_only_two_edges_of_any_feature_are_listed(artifact: Path) -> None:
    graph = read_graph(open_artifact(artifact), read_words(artifact))
    assert graph is not None
    assert graph.total == 73
    assert (graph.inner[0].weight, graph.inner[0].used) == (12.375, -24.625)
    assert len(graph.inner) == len(graph.inputs) == len(graph.outputs) == 16
    strengths = [abs(edge.used) for edge in graph.inner]
    assert strengths == sorted(strengths, reverse=True)
    ends = [end.id for edge in graph.inner for end in (edge.source, edge.target)]
    assert max(ends.count(end) for end in ends) <= 2
    assert all(edge.source.token and edge.source.words for edge in graph.inputs)


def test_token_texts_are_optional_and_their_marks_become_blanks(tmp_path: Path) -> None:
    assert read_words(tmp_path)[7] == "⟨7⟩"
    folder = write_artifact(
        tmp_path, Plan(layers=1, latents=4, rows=8, words=("<s>", "▁the", "Ġa", "x", "y"))
    )
    assert [read_words(folder)[token] for token in (1, 2, 99)] == [" the", " a", "⟨99⟩"]
    assert Words([])[-1] == "⟨-1⟩"


def test_agreement_ends_where_the_differing_word_begins() -> None:
    assert agreement("the cat sat", "the cow sat") == 4
    assert agreement("same", "same") == 4
    assert agreement("a b", "a b c") == 2
    assert agreement("x", "y") == 0
