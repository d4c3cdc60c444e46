"""Interchange: a variable planted in one direction is found by what is learned, not by chance."""

import pytest
import torch
from tiny_subject import START, tiny_llama
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.interchange import (
    InterchangePairs,
    InterchangeSettings,
    interchange,
    wilson,
)
from unweave.validate.protocols.protocol import Refused

SITE = "blocks.0.resid_post"
BASIS = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0))).Q.T


def planted() -> Subject:
    """Even tokens have +u, odd ones -u, each with much of its own; the sign is the answer."""
    subject = tiny_llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in subject.model.named_parameters():
            if "o_proj" in name or "down_proj" in name or "lm_head" in name:
                parameter.zero_()
            if name == "model.norm.weight":
                parameter.fill_(1)
        signs = torch.tensor([1.0, -1.0]).repeat(32)
        own = torch.randn(64, 31, generator=generator) @ BASIS[1:]
        subject.model.model.embed_tokens.weight.copy_(signs[:, None] * BASIS[0] + own)
        subject.model.lm_head.weight[10] = 5 * BASIS[0]
        subject.model.lm_head.weight[11] = -5 * BASIS[0]
    return subject


def pairs(count: int, seed: int) -> InterchangePairs:
    """Source and base always differ in the variable."""
    generator = torch.Generator().manual_seed(seed)
    base, source = (2 * torch.randint(2, 32, (count,), generator=generator) for _ in range(2))
    odd = torch.randint(0, 2, (count,), generator=generator)
    rows = [
        torch.stack([torch.full_like(odd, START), torch.full_like(odd, 7), token + sign], 1)
        for token, sign in ((base, odd), (source, 1 - odd))
    ]
    return InterchangePairs(rows[0], rows[1], torch.full_like(odd, 2), 10 + odd, 11 - odd)


class Signs:
    """Latents +u and -u, and one for each other direction of the basis and its opposite."""

    W_dec = torch.cat([BASIS, -BASIS])
    n_latents = 64

    def encode(self, x: Tensor) -> SparseCode:
        return SparseCode.from_dense((x @ self.W_dec.T).relu())

    def decode(self, code: SparseCode) -> Tensor:
        return code.dense() @ self.W_dec

    def directions(self) -> Tensor:
        return self.W_dec


def test_the_planted_variable_moves_and_a_random_subspace_does_not_move_it():
    settings = InterchangeSettings(dimensions=2)
    report = interchange(planted(), SITE, pairs(96, 1), pairs(80, 2), Signs(), settings)
    assert report.subject.value == 1
    assert report.full.value == 1
    assert report.latents is not None
    assert report.latents.value == 1
    assert report.rotation.value > 0.9
    assert report.random.high < 0.4
    assert report.neurons.value < 0.6
    assert report.shuffled.value < 0.7


def test_without_a_dictionary_there_is_no_number_for_latents():
    settings = InterchangeSettings(steps=1)
    report = interchange(planted(), SITE, pairs(20, 1), pairs(40, 2), None, settings)
    assert report.latents is None
    assert report.rotation.value < 0.5


def test_a_subject_that_cannot_answer_is_refused():
    test = pairs(80, 2)
    wrong = test._replace(answer=test.answer.roll(1))
    with pytest.raises(Refused, match="not above"):
        interchange(planted(), SITE, pairs(20, 1), wrong)


def test_too_many_dimensions_are_refused():
    with pytest.raises(UserError, match="32 dimensions"):
        interchange(
            planted(), SITE, pairs(20, 1), pairs(80, 2), None, InterchangeSettings(dimensions=33)
        )


def test_wilson_is_right():
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10).low == 0
