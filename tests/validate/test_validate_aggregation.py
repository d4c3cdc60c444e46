"""The aggregation test: unions only help one coder, and harm two where one misleads the other."""

import pytest
import torch
from tiny_subject import START, bump, tiny_llama, tiny_rows
from torch import Tensor

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.aggregation import (
    AggregationSettings,
    aggregation,
    matched_random,
    unite,
)
from unweave.validate.placed import Placed, placed

ROWS = tiny_rows(8, 8)
U, W, C = torch.linalg.qr(torch.randn(32, 3, generator=torch.Generator().manual_seed(0))).Q.T


class Linear:
    """relu(x W_enc) W_dec, by hand."""

    def __init__(self, W_enc: Tensor, W_dec: Tensor) -> None:
        self.W_enc, self.W_dec, self.n_latents = W_enc, W_dec, len(W_enc)

    def encode(self, x: Tensor) -> SparseCode:
        found = (x @ self.W_enc.T).relu()
        return SparseCode.from_dense(found * (found > 1e-3))

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec


def see_through() -> Subject:
    """Token 3 is 3u + w + c, token 4 is 3w - 3u; what is predicted goes by u alone."""
    subject = tiny_llama()
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "embed" in name or "lm_head" in name:
                parameter.zero_()
            if name == "model.norm.weight":
                parameter.fill_(1)
        subject.model.model.embed_tokens.weight[3] = 3 * U + W + C
        subject.model.model.embed_tokens.weight[4] = 3 * W - 3 * U
        subject.model.lm_head.weight[3] = U
        subject.model.lm_head.weight[4] = -U
    return subject


def two_coders() -> list[Placed]:
    """The second takes w without c for a sign of minus u, so w must not come back alone."""
    first = Linear(torch.stack([U, W, C]), torch.stack([U, W - U, C + U]))
    second = Linear(torch.stack([U, W - C]), torch.stack([U, -4 * U]))
    sites = ("blocks.0.resid_post",), ("blocks.1.resid_post",)
    return [
        Placed("first", first, sites[0], sites[0]),
        Placed("second", second, sites[1], sites[1]),
    ]


def test_a_latent_brought_back_misleads_a_coder_that_reads_it():
    rows = torch.tensor([[START, 3 + row % 2] for row in range(8)])
    settings = AggregationSettings(explained_by=1, donors=(1, 8))
    both = aggregation(see_through(), two_coders(), rows, settings)
    alone, united = both.points
    assert alone.latents == 2
    assert united.latents == 4
    assert alone.union.value < 0.2
    assert united.union.value > 3 * alone.union.value
    assert both.unmasked.value < 0.2
    first = aggregation(see_through(), two_coders()[:1], rows, settings)
    assert first.points[1].union.value < both.points[1].union.value / 3


def random_dictionary() -> Placed:
    spec = autoencoder("blocks.1.resid_pre", 32, 48, TopK(k=6))
    return placed("d", bump(Dictionary(spec)).requires_grad_(False))


def test_whole_explanations_leave_the_splice_as_it_is():
    settings = AggregationSettings(explains="row", donors=(1, 4), batch=3)
    report = aggregation(tiny_llama(), [random_dictionary()], ROWS, settings)
    for point in report.points:
        assert point.union.value == pytest.approx(report.unmasked.value, abs=1e-5)
    assert report.points[0].latents < report.points[1].latents


def test_a_budget_leaves_out_what_a_union_brings_back():
    both_ways = torch.cat([torch.eye(32), -torch.eye(32)])
    sites = ("blocks.1.resid_pre",)
    exact = Placed("exact", Linear(both_ways, both_ways), sites, sites)
    settings = AggregationSettings(explained_by=4, donors=(1, 8))
    report = aggregation(tiny_llama(), [exact], ROWS, settings)
    own, united = report.points
    assert own.latents == 4
    assert report.unmasked.value < 1e-4
    assert own.union.value > united.union.value > 0.01
    assert own.beyond_random.value == 0


def test_a_lenient_mask_leaves_the_context_whole():
    strict, lenient = (
        aggregation(
            tiny_llama(),
            [random_dictionary()],
            ROWS,
            AggregationSettings(mask=mask, donors=(1,)),
        )
        for mask in ("strict", "lenient")
    )
    assert lenient.points[0].union.value == pytest.approx(lenient.unmasked.value, abs=1e-5)
    assert abs(strict.points[0].union.value - strict.unmasked.value) > 1e-3


def test_random_sets_have_the_size_of_unions_and_go_by_frequency():
    generator = torch.Generator().manual_seed(1)
    own = torch.rand(200, 30, generator=generator) < torch.linspace(0.01, 0.5, 30)
    union = unite(own, torch.stack([torch.arange(200), torch.arange(200).roll(1)], 1))
    random = matched_random(own, union, 0)
    assert torch.equal(random.sum(1), union.sum(1))
    assert not (own & ~random).any()
    assert not torch.equal(random, union)
    added, truly = (random & ~own).sum(0).double(), (union & ~own).sum(0).double()
    assert torch.corrcoef(torch.stack([added, truly]))[0, 1] > 0.8


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="fewer donors"):
        aggregation(tiny_llama(), [random_dictionary()], ROWS)
