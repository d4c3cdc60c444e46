"""The generic battery: a coder from elsewhere passes, and one broken for each check does not."""

import pytest
import torch

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.check_dictionary import check_dictionary, hold_dictionary

WIDTH = 6


def failures(make) -> list[str]:
    return [one.check for one in check_dictionary(make, vectors()) if one.verdict == "failed"]


def vectors():
    return torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(0))


class Plain:
    """The simplest coder that is right: ReLU latents of fixed directions."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.W = torch.randn(8, WIDTH, generator=generator)
        self.offset = torch.randn(WIDTH, generator=generator)
        self.n_latents = 8

    def encode(self, x):
        if x.shape[1] != WIDTH:
            raise UserError(f"give vectors of {WIDTH}")
        return SparseCode.from_dense(torch.relu(x @ self.W.T))

    def decode(self, code):
        return code.dense() @ self.W + self.offset

    def directions(self):
        return self.W


def test_a_coder_from_elsewhere_passes() -> None:
    hold_dictionary(Plain, vectors())


def test_a_coder_of_unknown_width_needs_vectors() -> None:
    with pytest.raises(UserError, match="width that a Plain reads"):
        check_dictionary(Plain)


class WrongWidthOfCode(Plain):
    def encode(self, x):
        return SparseCode.from_dense(torch.cat([super().encode(x).dense()] * 2, 1))


class SaysALatentTwice(Plain):
    def encode(self, x):
        code = super().encode(x)
        latent = torch.arange(8).repeat(2).expand(len(x), 16)
        return SparseCode.from_topk(latent, (code.dense() / 2).repeat(1, 2), 8)


class AsDouble(Plain):
    def encode(self, x):
        return SparseCode.from_dense(super().encode(x).dense().double())


class DecodesTooFew(Plain):
    def decode(self, code):
        return super().decode(code)[:, :-1]


class WritesOtherDirections(Plain):
    def directions(self):
        return 2.0 * self.W


class Random(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def encode(self, x):
        drop = torch.rand(len(x), 8, generator=self.generator) < 0.5
        return SparseCode.from_dense(super().encode(x).dense() * drop)


class BuiltAtRandom(Plain):
    built = 0

    def __init__(self) -> None:
        super().__init__()
        BuiltAtRandom.built += 1
        self.W = self.W + 0.1 * BuiltAtRandom.built


class LooksAtItsNeighbours(Plain):
    def encode(self, x):
        dense = super().encode(x).dense()
        keep = dense.flatten().topk(min(3 * len(x), dense.numel())).values
        return SparseCode.from_dense(dense * (dense >= (keep[-1] if len(keep) else 0)))


class FailsOnNothing(Plain):
    def encode(self, x):
        assert x.amax() < 100
        return super().encode(x)


class CentresInPlace(Plain):
    def encode(self, x):
        code = super().encode(x)
        x -= x.mean()
        return code


class EmptiesTheCode(Plain):
    def decode(self, code):
        y = super().decode(code)
        code.value.zero_()
        return y


class ReadsAnyWidth(Plain):
    def encode(self, x):
        return super().encode(x[:, :WIDTH])


class MindsWidthItsOwnWay(Plain):
    def encode(self, x):
        assert x.shape[1] == WIDTH
        return super().encode(x)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (WrongWidthOfCode, "code_is_ragged"),
        (SaysALatentTwice, "code_is_ragged"),
        (AsDouble, "values_are_numbers"),
        (DecodesTooFew, "decode_has_the_output_shape"),
        (WritesOtherDirections, "decode_adds_directions"),
        (Random, "encode_repeats"),
        (BuiltAtRandom, "encode_repeats"),
        (LooksAtItsNeighbours, "rows_are_independent"),
        (FailsOnNothing, "nothing_gives_nothing"),
        (CentresInPlace, "input_is_left_alone"),
        (EmptiesTheCode, "input_is_left_alone"),
        (ReadsAnyWidth, "wrong_width_is_refused"),
        (MindsWidthItsOwnWay, "wrong_width_is_refused"),
    ],
)
def test_a_broken_coder_is_caught(broken, check: str) -> None:
    assert check in failures(broken)
    with pytest.raises(AssertionError, match=check):
        hold_dictionary(broken, vectors())
