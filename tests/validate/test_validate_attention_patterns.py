"""Predicted attention patterns: what is measured of them, by hand, and controls that fail."""

import math

import numpy as np
import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.attention.qk_block import QKBlock, attention_inputs, qk_block
from unweave.dictionaries.attention.qk_start import start_qk
from unweave.dictionaries.baselines.pca import pca
from unweave.errors import UserError
from unweave.subject.scores import Scoring
from unweave.validate.attention.patterns import measure_patterns, pattern_ce, run_with_pattern
from unweave.validate.attention.predictors import (
    FromFeatures,
    FromReconstruction,
    Predicted,
    low_rank,
    mean_pattern,
    untrained,
)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def rows():
    return tiny_rows(12)


@pytest.fixture(scope="module")
def block(subject):
    return qk_block(subject, 1, 16)


@pytest.fixture(scope="module")
def x(subject, rows):
    return attention_inputs(subject, rows, [1])[1]


def exact(block, x):
    return start_qk(
        block, x, site="blocks.1.attn.in", n_queries=64, n_keys=32, query_activation=ReLU(),
        start="svd",
    )  # fmt: skip


def test_the_block_itself_is_measured_as_perfect_and_controls_are_not(block, x):
    one = exact(block, x)
    found = measure_patterns(
        {
            "exact": FromFeatures(one, block),
            "whole": FromReconstruction(pca(x[:, 1:].flatten(0, 1)), block),
            "full rank": low_rank(block, x, 8),
            "untrained": FromFeatures(untrained(one), block),
            "mean": mean_pattern(block, x[:6]),
        },
        block,
        x[6:],
    )
    for name in ("exact", "whole", "full rank"):
        scores = found[name]
        assert scores.kl.value < 1e-4, name
        assert scores.max_difference.value < 1e-3
        assert scores.argmax.value > 0.99
        assert scores.score_mse.value < 1e-4
    assert found["exact"].l0_Q.value == 32.0
    assert found["exact"].l0_K.value == 16.0
    assert found["full rank"].l0_Q.value == 32.0
    assert found["full rank"].parameters == 2 * 4 * 32 * 8
    for name in ("untrained", "mean"):
        assert found[name].kl.low > 0.05, name
        assert found[name].argmax.high < 0.95
    assert math.isnan(found["mean"].score_mse.value)


class Told:
    """Says the same pattern of every row."""

    parameters = 0

    def __init__(self, pattern):
        self.pattern = torch.tensor(pattern)

    def predict(self, x):
        log = self.pattern.log().expand(len(x), 1, -1, -1)
        return Predicted(log, None, 1.0, 2.0)


def test_numbers_of_patterns_by_hand():
    # Keys are what is read, queries are one: scores 0, log 3 and log 4 wherever they are seen.
    read = torch.tensor([[[0.0], [math.log(3.0)], [math.log(4.0)]]])
    zero, one = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)
    plain = Scoring(scale=1.0, cos=None, sin=None, theta=None)
    block = QKBlock(zero, torch.ones(1, 1), one, torch.zeros(1, 1), plain)
    told = Told([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]])
    found = measure_patterns({"told": told}, block, read)["told"]
    second = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    third = sum(p * math.log(p / q) for p, q in ((1 / 8, 1 / 4), (3 / 8, 1 / 2), (4 / 8, 1 / 4)))
    assert found.kl.value == pytest.approx((second + third) / 2, abs=1e-6)
    assert found.max_difference.value == pytest.approx((0.25 + 0.25) / 2, abs=1e-6)
    assert found.argmax.value == 0.0  # the first of equals, and the second of three
    assert found.argmax_elsewhere.value == 0.0
    assert (found.l0_Q.value, found.l0_K.value) == (1.0, 2.0)
    with pytest.raises(UserError, match="two tokens or more"):
        measure_patterns({"told": told}, block, read[:, :1])


@pytest.mark.parametrize("by_data", [False, True])
def test_truncated_heads_have_their_rank_and_the_best_directions(block, x, by_data):
    cut = low_rank(block, x, 3, by_data=by_data)
    assert all(np.linalg.matrix_rank(W.numpy(), tol=1e-4) == 3 for W in (*cut.W_Q, *cut.W_K))
    inside = x[:, 1:].flatten(0, 1) - x[:, 1:].flatten(0, 1).mean(0)
    for head in range(4):
        product = block.W_Q[head] @ block.W_K[head // 2].T
        kept = cut.W_Q[head] @ cut.W_K[head].T
        weigh = (lambda m: inside @ m @ inside.T) if by_data else (lambda m: m)
        values = torch.linalg.svdvals(weigh(product))
        best = values[3:].square().sum()
        assert weigh(product - kept).square().sum() == pytest.approx(best.item(), rel=2e-3)


def test_the_network_runs_on_the_predicted_pattern(subject, block, x, rows):
    one = exact(block, x)
    features, wrong = FromFeatures(one, block), FromFeatures(untrained(one), block)
    logits = run_with_pattern(subject, 1, features, rows)
    torch.testing.assert_close(logits, subject.run(rows).logits, atol=1e-3, rtol=1e-3)
    found = pattern_ce(subject, 1, {"exact": features, "untrained": wrong}, rows)
    assert abs(found["exact"].value) < 1e-3
    # A random network guesses as badly with any pattern; its logits tell them apart.
    assert (run_with_pattern(subject, 1, wrong, rows) - subject.run(rows).logits).abs().max() > 0.1
    assert found["untrained"].high - found["untrained"].low > 1e-2


def test_topk_features_are_counted_behind_the_start_token(block, x):
    one = start_qk(
        block, x, site="blocks.1.attn.in", n_queries=64, n_keys=64, query_activation=TopK(k=5),
        key_activation=TopK(k=7),
    )  # fmt: skip
    found = FromFeatures(one, block).predict(x)
    assert (found.l0_Q, found.l0_K) == (5.0, 7.0)
