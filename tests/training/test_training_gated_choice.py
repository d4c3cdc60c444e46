"""Choosing among gated blocks by what one head a place misses."""

import pytest
import torch

from unweave.dictionaries.attention.gated_block import GatedBlock, GatedBlockSpec
from unweave.errors import UserError
from unweave.training.attention.gated_choice import best_start, missed_by_one_head


def block(gates: list[list[float]]) -> GatedBlock:
    """Two heads that write (1, 0) and (0, 1) by as much as their gate for a token is open."""
    made = GatedBlock(GatedBlockSpec(d_model=2, n_heads=2, d_head=1, context=4))
    with torch.no_grad():
        made.W_O.copy_(torch.eye(2)[:, None])
        made.b_V.fill_(1.0)
        made.W_V.fill_(1.0)
        made.b_V.sub_(made.values(torch.eye(2)[None])[0, :, 0] - 1)
        made.W_gate_Q.copy_(torch.tensor(gates))
        made.b_gate_K.fill_(1.0)
    return made


X = torch.eye(2)[torch.tensor([[0, 0, 1], [1, 1, 0]])]
OWN, SHARED = block([[1.0, 0.0], [0.0, 1.0]]), block([[1.0, 0.5], [0.5, 1.0]])


def test_nothing_is_missed_where_each_place_is_one_head_s() -> None:
    assert missed_by_one_head(OWN, X, OWN(X)) == pytest.approx(0, abs=1e-6)


def test_what_two_heads_write_together_is_missed_by_one() -> None:
    # Each place is to have (1, .5) or (.5, 1): the better head leaves .25 of 1.25.
    assert missed_by_one_head(SHARED, X, SHARED(X)) == pytest.approx(0.2, abs=1e-5)


def test_a_head_that_does_harm_is_no_worse_than_none() -> None:
    assert missed_by_one_head(OWN, X, -OWN(X)) == pytest.approx(1.0)


def test_the_start_with_a_head_each_is_chosen() -> None:
    y = OWN(X)
    shut, half = block([[0.0, 0.0]] * 2), block([[0.5, 0.5]] * 2)
    assert best_start([shut, half, OWN, shut], X, y) == 2
    assert best_start([shut, half], X, y) == 1


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(UserError, match="at least one block"):
        best_start([], X, X)
    with pytest.raises(UserError, match="nothing is to be written"):
        missed_by_one_head(OWN, X, torch.zeros_like(X))
