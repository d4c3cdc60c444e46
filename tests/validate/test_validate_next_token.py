"""Latents that promote what really follows, and latents that promote anything else."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows
from torch import Tensor

from unweave.dictionaries.code import SparseCode
from unweave.errors import UserError
from unweave.validate.numbers.next_token import next_token_score
from unweave.validate.placed import Placed

SUBJECT = tiny_llama()
ROWS = tiny_rows(40, 16)
VOCAB, START = 64, 3


class Writes:
    """A latent a token, with directions of our own."""

    n_latents = VOCAB

    def __init__(self, directions: Tensor) -> None:
        self._directions = directions

    def directions(self) -> Tensor:
        return self._directions


def counted() -> Tensor:
    """Text in which token t is always followed by t + 1."""
    start = torch.randint(START, VOCAB, (40, 1), generator=torch.Generator().manual_seed(1))
    rows = START + (start - START + torch.arange(16)) % (VOCAB - START)
    rows[:, 0] = ROWS[0, 0]
    return rows


def this_token(rows: Tensor) -> SparseCode:
    inside = rows[:, 1:].reshape(-1, 1)
    return SparseCode.from_topk(inside, torch.ones_like(inside).float(), VOCAB)


def score(directions: Tensor, rows: Tensor) -> tuple[float, float, float]:
    part = Placed("it", Writes(directions), ("x",), ("x",))
    return next_token_score(SUBJECT, part, this_token(rows), rows)


def promoting(order: Tensor) -> Tensor:
    return SUBJECT.unembed().float()[order]


def test_latents_that_promote_the_next_token_score_high_and_others_about_nothing():
    after = torch.arange(VOCAB)
    after[START:] = START + (after[START:] - START + 1) % (VOCAB - START)
    right = score(promoting(after), counted())
    assert right[0] > 2
    assert right[1] > 1
    generator = torch.Generator().manual_seed(0)
    wrong = score(promoting(torch.randperm(VOCAB, generator=generator)), counted())
    assert abs(wrong[0]) < 0.5
    assert score(-promoting(after), counted())[0] == pytest.approx(-right[0])


def test_where_nothing_follows_from_anything_the_score_is_about_nothing():
    low, high = score(promoting(torch.arange(VOCAB)), tiny_rows(200, 16, seed=3))[1:]
    assert low - 0.1 < 0 < high + 0.1


def test_strength_weighs_and_size_of_directions_does_not():
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(VOCAB, SUBJECT.d_model, generator=generator)
    assert score(directions, ROWS)[0] == pytest.approx(score(7 * directions, ROWS)[0], rel=1e-4)


def test_firings_count_by_their_strength_and_negative_ones_not_at_all():
    rows, part = counted(), Placed("it", Writes(promoting(torch.arange(VOCAB))), ("x",), ("x",))
    inside = rows[:, 1:].reshape(-1, 1)
    after = rows[:, 2:]
    # At each place but the last: who promotes what follows, who forbids it, and who is negative.
    right = torch.cat([after, after[:, -1:]], 1).reshape(-1, 1)
    other = START + (right - START + 20) % (VOCAB - START)
    latent = torch.cat([right, other, inside], 1)

    def scored(*values: float) -> float:
        code = SparseCode.from_topk(latent, torch.tensor([values]).expand(len(latent), -1), VOCAB)
        return next_token_score(SUBJECT, part, code, rows).value

    one, two = scored(1.0, 0.0, 0.0), scored(0.0, 1.0, 0.0)
    assert one > two + 1
    assert scored(3.0, 1.0, 0.0) == pytest.approx((3 * one + two) / 4, rel=1e-4)
    assert scored(3.0, 1.0, -2.0) == pytest.approx((3 * one + two) / 4, rel=1e-4)


def test_what_is_not_written_into_the_stream_is_refused():
    with pytest.raises(UserError, match="no direct effect"):
        score(torch.ones(VOCAB, SUBJECT.d_model + 1), ROWS)


def test_every_token_once_is_chance_whatever_a_direction_promotes_in_common():
    tokens = torch.arange(VOCAB).view(2, -1)
    rows = torch.cat([torch.tensor([[1, 5], [1, 5]]), tokens], 1)
    latent = torch.zeros(2 * (rows.shape[1] - 1), 1, dtype=torch.int64)
    code = SparseCode.from_topk(latent, torch.ones(len(latent), 1), VOCAB)
    common = SUBJECT.unembed().float().mean(0).expand(VOCAB, -1)
    found = next_token_score(SUBJECT, Placed("it", Writes(common), ("x",), ("x",)), code, rows)
    assert abs(found.value) < 1e-5
    effect = common[0] @ SUBJECT.unembed().float().T
    assert effect.mean() > 0.3 * effect.std()
