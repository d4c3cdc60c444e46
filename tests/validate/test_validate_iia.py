"""Interchange interventions where the variable's place is known, and where it is not."""

import pytest
import torch
from parity_network import SITE, D, pairs, parity_network
from tiny_subject import tiny_llama

from unweave.dictionaries.baselines.neurons import coordinates
from unweave.validate.interventions.iia import IIASettings, interchange_accuracy, wilson
from unweave.validate.interventions.iia_protocol import Variable, iia_on
from unweave.validate.interventions.interchange import (
    LearnSettings,
    answers_after,
    exchange_of,
    random_basis,
)
from unweave.validate.placed import Placed
from unweave.validate.protocols.protocol import Bench, Refused
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.interchange import (
    true_latents,
    variable_named,
    variable_pairs,
)
from unweave.validate.worlds.programs.library import program

WHOLE = Placed("whole", coordinates(D), (SITE,), (SITE,))
SETTINGS = IIASettings(pairs=80, k=2, chosen=2, learn=LearnSettings(epochs=4, rate=0.1, batch=20))


class Blind:
    """Every coordinate but the one that matters."""

    n_latents = D

    def encode(self, x):
        return coordinates(D).encode(x * (torch.arange(D) > 0))

    def decode(self, code):
        return coordinates(D).decode(code)

    def directions(self):
        return coordinates(D).directions()


def test_the_variable_is_found_where_it_is_and_not_in_a_random_subspace():
    found = interchange_accuracy(parity_network(), WHOLE, pairs(differ=True), SETTINGS)
    assert found.share("everything") == found.share("latents_all") == 1
    assert found.share("latents") == found.share("latents_learned") == 1
    assert found.share("das") > 0.95
    # Two random coordinates, directions or dimensions seldom hold the one of 32 that matters.
    assert found.share("random") < 0.3
    assert found.share("random_latents") < 0.3
    assert found.share("twin") < 0.5
    assert found.share("nothing") == 0
    assert found.exchanged["latents"] == found.exchanged["random_latents"] == 2


def test_latents_without_the_variable_do_no_better_than_nothing():
    blind = Placed("blind", Blind(), (SITE,), (SITE,))
    found = interchange_accuracy(parity_network(), blind, pairs(), SETTINGS)
    assert found.share("latents") == found.share("latents_learned") == found.share("nothing")
    # Half of the pairs have the same parity, so that doing nothing is right there.
    assert 0.3 < found.share("nothing") < 0.7


def test_a_subject_or_a_place_that_lacks_the_variable_is_refused_with_the_reason():
    with pytest.raises(Refused, match="both prompts in 0 of 80 pairs, but 40 are needed"):
        interchange_accuracy(tiny_llama(), WHOLE, pairs(), SETTINGS)
    with pytest.raises(Refused, match="4 of 4 pairs, but 40"):
        interchange_accuracy(parity_network(), WHOLE, pairs(4), SETTINGS)
    elsewhere = [pair._replace(base_position=1, source_position=1) for pair in pairs(differ=True)]
    with pytest.raises(Refused, match=r"(?s)Neither the whole vector.* 0 of 40 answers"):
        interchange_accuracy(parity_network(), WHOLE, elsewhere, SETTINGS)
    apart = WHOLE._replace(writes=("blocks.0.resid_post",))
    with pytest.raises(Refused, match="the one it reads"):
        interchange_accuracy(parity_network(), apart, pairs(), SETTINGS)


def test_pairs_that_the_subject_gets_wrong_are_left_out():
    wrong = [pair._replace(source_answer=7, expected=7) for pair in pairs(40, seed=1)]
    right = pairs(40, differ=True)
    found = interchange_accuracy(parity_network(), WHOLE, [*wrong, *right], SETTINGS)
    assert found.of_site["everything"] == (20, 20)


def test_as_a_protocol_variables_are_pooled_and_nothing_is_done_twice(tmp_path, monkeypatch):
    bench = Bench(parity_network(), WHOLE, tmp_path)
    known = Variable("parity", tuple(pairs(differ=True)), 0)
    unknown = Variable("more", tuple(p._replace(base_answer=7) for p in pairs()), 3)
    outcome = iia_on(bench, [known, unknown], SETTINGS)
    assert next(iter(outcome.numbers)) == "iia_latents"
    assert outcome.numbers["iia_latents_learned"].value == 1
    assert outcome.controls["iia_random_as_learned"].value < 1
    assert {"iia_random", "iia_nothing", "iia_twin_learned"} < set(outcome.controls)
    assert "both prompts in 0" in outcome.details["by_variable"]["more"]["refused"]
    monkeypatch.setattr("unweave.validate.interventions.interchange._descend", None)
    assert iia_on(bench, [known, unknown], SETTINGS) == outcome
    with pytest.raises(Refused, match="No variable can be exchanged in parity here"):
        iia_on(bench, [unknown], SETTINGS)


def test_in_a_program_the_true_latents_are_found_and_random_directions_are_not():
    small = program("histogram", length=5)
    compiled = compile_program(small, settings=CompileSettings(rotation=1))
    variable, site = variable_named(compiled, "count"), "blocks.0.resid_post"
    some = variable_pairs(compiled, variable, 44, length=5, seed=0)
    true = Placed("true", true_latents(compiled, site), (site,), (site,))
    found = interchange_accuracy(
        compiled.subject, true, some, SETTINGS.model_copy(update={"k": 6, "chosen": 6})
    )
    assert found.share("everything") == found.share("latents_all") == 1
    assert found.share("latents") > 0.9
    assert found.share("latents_learned") > 0.9
    assert found.share("twin") < 0.3
    assert found.share("random") < 0.5


def test_logits_after_a_move_are_those_of_the_whole_pass():
    subject = tiny_llama()
    longer = [p._replace(base=(*p.base, 9, 11)) for p in pairs(3)]
    some = exchange_of(subject, SITE, [*pairs(3, seed=1), *longer])
    shift = torch.randn(some.base.shape, generator=torch.Generator().manual_seed(0))
    found = answers_after(subject, SITE, some, shift)
    for row, pair in enumerate(some.pairs):

        def put(tensor, row=row, pair=pair):
            new = tensor.clone()
            new[0, pair.base_position] += shift[row]
            return new

        whole = subject.run(torch.tensor([pair.base]), replace={SITE: put}).logits
        torch.testing.assert_close(found[row], whole[0, -1], atol=1e-4, rtol=1e-4)


def test_wilson_by_hand_and_bases_are_orthonormal():
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10).high == 1
    basis = random_basis(D, 5, seed=0)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
