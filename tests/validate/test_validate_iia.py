"""Interchange interventions where the variable's place is known, and where it is not."""

import pytest
import torch
from tiny_subject import START, tiny_llama

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.validate.interventions.iia import IIASettings, iia, interchange_accuracy, wilson
from unweave.validate.interventions.interchange import Counterfactual, LearnSettings, random_basis
from unweave.validate.placed import Placed
from unweave.validate.protocols.protocol import Bench, Refused

D, SITE = 32, "blocks.1.resid_post"
WHOLE = Placed("whole", coordinates(D), (SITE,), (SITE,))
SETTINGS = IIASettings(k=2, learn=LearnSettings(epochs=6))
ODD, EVEN = 41, 40


def parity_network():
    """Says whether the last token is odd, in coordinate 0; all the rest of the stream is noise
    that differs by token and that the answer takes no notice of.
    """
    subject = tiny_llama()
    model = subject.model
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1)
        table = model.model.embed_tokens.weight
        table.copy_(torch.randn(table.shape, generator=torch.Generator().manual_seed(3)))
        table[:, 0] = (torch.arange(len(table)) % 2 * 2.0 - 1) * 4
        model.lm_head.weight.zero_()
        model.lm_head.weight[ODD, 0], model.lm_head.weight[EVEN, 0] = 3.0, -3.0
    return subject


def pairs(count=80, *, seed=0):
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 40, (count, 2), generator=random).tolist()

    def answer(token):
        return ODD if token % 2 else EVEN

    return [
        Counterfactual((START, 5, b), (START, 6, s), 2, 2, answer(b), answer(s), answer(s))
        for b, s in tokens
    ]


def test_the_variable_is_found_where_it_is_and_not_in_a_random_subspace():
    found = interchange_accuracy(parity_network(), WHOLE, pairs(), SETTINGS)
    assert found.everything.value == 1
    assert found.latents.value == found.latents_learned.value == 1
    assert found.das.value > 0.95
    assert found.random.value < 0.8
    # Half of the pairs have the same parity, so that doing nothing is right there.
    assert 0.3 < found.nothing.value < 0.7


def test_latents_without_the_variable_do_no_better_than_nothing():
    class Blind:
        """Every coordinate but the one that matters."""

        n_latents = D

        def encode(self, x):
            return coordinates(D).encode(x * (torch.arange(D) > 0))

        def decode(self, code):
            return coordinates(D).decode(code)

        def directions(self):
            return coordinates(D).directions()

    blind = Placed("blind", Blind(), (SITE,), (SITE,))
    found = interchange_accuracy(parity_network(), blind, pairs(), SETTINGS)
    assert found.latents.value == found.latents_learned.value == found.nothing.value


def test_a_subject_at_chance_is_refused_and_so_are_few_pairs(tmp_path):
    with pytest.raises(Refused, match="no better than chance"):
        interchange_accuracy(tiny_llama(), WHOLE, pairs(), SETTINGS)
    with pytest.raises(Refused, match="too few"):
        interchange_accuracy(parity_network(), WHOLE, pairs(4), SETTINGS)
    outcome = iia(Bench(parity_network(), WHOLE, tmp_path), pairs(), SETTINGS)
    assert next(iter(outcome.numbers)) == "iia_latents_learned"
    assert set(outcome.controls) == {"iia_random", "iia_nothing"}


def test_wilson_by_hand_and_bases_are_orthonormal():
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10).high == 1
    basis = random_basis(D, 5, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
