"""Causal scrubbing: a true hypothesis recovers all, a wrong one does not, a vacuous one is told."""

import math

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.validate.interventions.scrub_claims import resampled
from unweave.validate.interventions.scrubbing import Node, scrub
from unweave.validate.placed import Placed

D, ROWS = 32, tiny_rows(64, 3)
LOW = Placed("low", coordinates(D), ("blocks.0.resid_pre",), ("blocks.0.resid_pre",))
HIGH = Placed("high", coordinates(D), ("blocks.1.resid_pre",), ("blocks.1.resid_pre",))


def parity_network():
    """All it knows of a token is whether it is odd."""
    subject = tiny_llama()
    with torch.no_grad():
        table = subject.model.model.embed_tokens.weight
        table.copy_(table[:2].mul(3).repeat(32, 1))
    return subject


def parities(rows):
    return (rows[:, 1:] % 2 * torch.tensor([1, 2])).sum(1)


def halves(rows):
    return (rows[:, 1:] // 2 % 2 * torch.tensor([1, 2])).sum(1)


def everything(rows):
    return rows[:, 1] * 64 + rows[:, 2]


def test_the_true_hypothesis_recovers_everything_and_a_wrong_one_does_not():
    subject = parity_network()
    right = scrub(subject, [HIGH], ROWS, [Node("high", parities)])
    assert right.recovered_kl.value == pytest.approx(1, abs=1e-4)
    assert right.recovered_ce.value == pytest.approx(1, abs=1e-4)
    assert not right.vacuous
    wrong = scrub(subject, [HIGH], ROWS, [Node("high", halves)])
    assert wrong.recovered_kl.value < 0.5


def test_a_vacuous_hypothesis_recovers_everything_and_is_flagged():
    found = scrub(parity_network(), [HIGH], ROWS, [Node("high", everything)])
    assert found.recovered_kl.value > 0.9
    assert found.vacuous
    assert found.agreeing < 0.2


def test_what_lies_below_is_resampled_first():
    subject = parity_network()
    true_tree = Node("high", parities, below=(Node("low", parities),))
    tree = scrub(subject, [LOW, HIGH], ROWS, [true_tree])
    assert tree.recovered_kl.value == pytest.approx(1, abs=1e-4)
    # The top is right and what it is computed from is wrong: only the recursion can see it.
    false_tree = Node("high", parities, below=(Node("low", halves),))
    assert scrub(subject, [LOW, HIGH], ROWS, [false_tree]).recovered_kl.value < 0.5


def test_only_the_latents_of_a_node_are_exchanged():
    network = tiny_llama()
    anyone = [Node("high", lambda r: r[:, 0], latents=())]
    # Nothing is exchanged, so there is nothing to recover.
    assert math.isnan(scrub(network, [HIGH], ROWS, anyone).recovered_kl.value)


def test_resampling_permutes_within_equal_keys():
    random = torch.Generator().manual_seed(0)
    values = torch.arange(12.0).view(6, 2)
    keys = torch.tensor([[0.0, 1], [0, 1], [1, 1], [1, 1], [1, 1], [2, 1]])
    found = resampled(values, keys, torch.tensor([0]), random)
    assert torch.equal(found[:, 1], values[:, 1])
    assert found[5, 0] == values[5, 0]
    assert set(found[:2, 0].tolist()) == {0.0, 2.0}
    assert set(found[2:5, 0].tolist()) == {4.0, 6.0, 8.0}
    moved = [resampled(values, keys, torch.tensor([0]), random)[2, 0].item() for _ in range(20)]
    assert len(set(moved)) == 3
