"""The headline says whether patterns were replaced too, and claims no more than there is."""

import pytest

from unweave.report.sections.head import replaced

MLPS, VALUES = ["L0.mlp", "L1.mlp"], ["L0.attn", "L1.attn"]
QUERIES, KEYS = ["L0.q", "L1.q"], ["L0.k", "L1.k"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (MLPS + VALUES, "all 2 MLPs and attention blocks"),
        (MLPS + VALUES + QUERIES + KEYS, "all 2 MLPs and attention blocks (patterns included)"),
        (VALUES + QUERIES + KEYS, "2 attention blocks (patterns included)"),
        (MLPS + VALUES + QUERIES, "6 parts"),
        (MLPS + VALUES + QUERIES[:1] + KEYS[:1], "6 parts"),
        (QUERIES + KEYS, "4 parts"),
    ],
)
def test_what_was_replaced_in_words(parts, words):
    assert replaced(parts) == words
