"""Automated interpretability: latents that rules can tell, latents that nobody can, refusals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unweave.describe.judge import Unreadable
from unweave.describe.judge.judge import NO_COSTS
from unweave.dictionaries.code import SparseCode
from unweave.subject import load_subject, token_rows
from unweave.validate.placed import Placed
from unweave.validate.protocols.autointerp import AutointerpSettings, autointerp
from unweave.validate.protocols.autointerp_examples import (
    ExampleSettings,
    Found,
    draw_passages,
    firings_of,
)
from unweave.validate.protocols.protocol import Bench, Refused

SITE = "blocks.0.resid_pre"
LATENTS = 12
SMALL = ExampleSettings(
    tokens=16_000, context=64, top_explain=5, weighted_explain=3, top_score=2, weighted_score=2
)
SETTINGS = AutointerpSettings(examples=SMALL, latents=LATENTS, control_latents=6, least_latents=6)


@pytest.fixture(scope="module")
def wren():
    return load_subject("wren")


class OfTokens:
    """A latent for each of some tokens; or, `scattered`, latents that fire by a hash of the row."""

    def __init__(self, wren, tokens: Tensor, *, scattered: bool = False) -> None:
        self.W_dec = wren.embed()[tokens].float()
        self.n_latents, self._scattered = len(tokens), scattered

    def encode(self, x: Tensor) -> SparseCode:
        near = (x @ self.W_dec.T) / self.W_dec.square().sum(1) > 0.999
        same = near & ((x.square().sum(1)[:, None] / self.W_dec.square().sum(1)) < 1.001)
        spread = torch.frac(torch.arange(len(x))[:, None] * 0.618 + torch.arange(self.n_latents))
        if self._scattered:
            random = torch.Generator().manual_seed(len(x))
            same = torch.rand(len(x), self.n_latents, generator=random) < 0.03
        return SparseCode.from_dense(same * (1 + spread))

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec


@pytest.fixture(scope="module")
def common(wren) -> Tensor:
    """Tokens that are neither rare nor in every passage."""
    rows = token_rows(wren, "heldout", tokens=16_000, context=64, seed=0)
    counts = torch.cat([rows.train, rows.heldout])[:, 1:].flatten().bincount()
    return counts.argsort(descending=True)[12 : 12 + LATENTS]


def _bench(wren, coder, tmp_path) -> Bench:
    return Bench(wren, Placed("d", coder, (SITE,), (SITE,)), tmp_path, text="heldout")


@pytest.fixture(scope="module")
def told(wren, common, tmp_path_factory):
    return autointerp(_bench(wren, OfTokens(wren, common), tmp_path_factory.mktemp("a")), SETTINGS)


def test_latents_of_single_words_are_told_and_the_controls_are_not(told):
    assert told.numbers["latents"].value == LATENTS
    assert told.numbers["balanced_accuracy"].value > 0.95
    assert told.numbers["autointerp_score"].value > 0.95
    assert told.controls["balanced_accuracy_shuffled"].value < 0.65
    assert told.controls["balanced_accuracy_random"].value < told.numbers["balanced_accuracy"].low


def test_latents_that_fire_anywhere_cannot_be_told(wren, common, tmp_path):
    coder = OfTokens(wren, common, scattered=True)
    found = autointerp(_bench(wren, coder, tmp_path), SETTINGS)
    assert 0.3 < found.numbers["balanced_accuracy"].value < 0.65


class Stubborn:
    """A judge that answers only on some latents, and is counted while it does."""

    name, at_once, costs = "stubborn", 4, NO_COSTS

    def __init__(self) -> None:
        self.explained = 0

    def explain(self, examples) -> str:
        self.explained += 1
        if sum(len(one.passage.text) for one in examples) % 3 == 0:
            raise Unreadable("no")
        return "x"

    def predict(self, explanation, passages) -> list[bool]:
        return [True] * len(passages)


def test_a_judge_may_be_anyone_is_asked_once_and_what_it_leaves_out_is_counted(
    wren, common, tmp_path
):
    bench, judge = _bench(wren, OfTokens(wren, common), tmp_path), Stubborn()
    settings = SETTINGS.model_copy(update={"control_latents": 1})
    found = autointerp(bench, settings, judge=judge)
    assert found.details["unreadable"] + found.numbers["latents"].value == LATENTS
    assert found.numbers["balanced_accuracy"].value == pytest.approx(0.5)
    asked = judge.explained
    assert autointerp(bench, settings, judge=judge) == found
    assert judge.explained == asked


def test_latents_that_hardly_fire_are_refused(wren, tmp_path):
    rare = torch.arange(LATENTS)
    with pytest.raises(Refused, match=r"\d+ latents of d fire often enough in"):
        autointerp(_bench(wren, OfTokens(wren, rare), tmp_path), SETTINGS)


def test_firings_are_found_where_their_tokens_are(wren, common):
    rows = token_rows(wren, "heldout", tokens=2_000, context=64, seed=0).train
    placed = Placed("d", OfTokens(wren, common), (SITE,), (SITE,))
    found = firings_of(wren, placed, rows, [0, 5], rows_at_once=3)
    for latent in (0, 5):
        own = found.of(latent)
        where = (rows[:, 1:] == common[latent]).nonzero()
        assert sorted(zip(own.row.tolist(), (own.position - 1).tolist(), strict=True)) == [
            tuple(pair) for pair in where.tolist()
        ]
    assert len(found.of(3).row) == 0


def _by_hand() -> tuple[Found, np.ndarray]:
    """One latent on rows of 41 tokens, at 20 and 25 of each row, the earlier rows the stronger."""
    rows = np.arange(30 * 41).reshape(30, 41)
    row = np.repeat(np.arange(30), 2)
    position = np.tile([20, 25], 30)
    value = 60.0 - np.arange(60)
    return Found(np.zeros(60, dtype=np.int64), row, position, value), rows


def test_passages_are_drawn_as_published():
    found, rows = _by_hand()
    pieces = [str(token) for token in range(rows.size)]
    (drawn,) = draw_passages(found, [0, 7], rows, pieces, ExampleSettings(), seed=0)
    assert (len(drawn.explain), len(drawn.score)) == (15, 14)
    assert all(len(one.passage.tokens) == 21 for one in drawn.explain + drawn.score)
    strengths = [max(one.activations) for one in drawn.explain]
    assert strengths == sorted(strengths, reverse=True)
    # The twelve strongest that do not overlap are the first ones of the first twelve rows.
    middles = {one.passage.tokens[10] for one in drawn.explain + drawn.score}
    tops = {row * 41 + 20 for row in range(12)}
    assert tops <= middles
    for one in drawn.explain:
        assert one.passage.pieces == tuple(str(token) for token in one.passage.tokens)
        assert one.fires
        assert one.threshold == pytest.approx(0.6)
    assert sum(one.fires for one in drawn.score) >= 4


def test_one_seed_gives_one_draw_and_a_latent_with_too_little_none():
    found, rows = _by_hand()
    pieces = [str(token) for token in range(rows.size)]
    draws = [list(draw_passages(found, [0], rows, pieces, ExampleSettings(), seed=3)) for _ in "ab"]
    assert draws[0] == draws[1]
    few = Found(*(field[:16] for field in found))
    assert list(draw_passages(few, [0], rows, pieces, ExampleSettings(), seed=3)) == []
