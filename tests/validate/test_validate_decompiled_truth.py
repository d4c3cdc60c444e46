"""Known networks decompiled: what is right scores one, what is random does not."""

import pytest
import torch

from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.validate.circuit_truth import item_auroc
from unweave.validate.truth.decompiled.edges import decompiled_edges
from unweave.validate.truth.decompiled.features import features_found
from unweave.validate.truth.decompiled.known import (
    known_program,
    known_tracr,
    with_random_weights,
)
from unweave.validate.truth.decompiled.linear import LinearSettings, linear_found, linear_network
from unweave.validate.truth.decompiled.modular import (
    fit_modular,
    frequency_shares,
    modular_found,
)
from unweave.validate.truth.decompiled.parts import KnownFitSettings, fit_known, randomised_
from unweave.validate.worlds.modular import ModularSettings as Modular
from unweave.validate.worlds.modular import all_pairs, exact_modular, untrained_modular
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.library import program
from unweave.validate.worlds.tracr import load_tracr

SMALL = LinearSettings(features=8, per_token=2, fan_out=2, tokens=60)
QUICK = KnownFitSettings(steps=80, rows=150, joint_steps=0)


def true_part(known) -> Part:
    """Latents are the features: read along d_j, written along what A makes of it."""
    n, d = known.read.shape
    spec = PartSpec(
        name="L0.mlp", input_site="blocks.0.mlp.in", output_site="blocks.0.mlp.out", d_in=d,
        d_out=d, n_latents=n, k=n, input_scale=0.7, output_scale=1.3,
    )  # fmt: skip
    part = Part(spec)
    with torch.no_grad():
        part.W_enc.copy_(known.read)
        part.W_dec.copy_(known.A.T @ known.write * 1.3 / 0.7)
    return part


def test_the_true_map_has_no_error_and_the_true_edges():
    known = linear_network(SMALL, seed=0)
    logits = known.subject.run(known.draw(4, 5, seed=1)).logits
    assert logits[:, 1:, 61:].abs().max() > 0.5  # the network does compute something
    found = linear_found(known, true_part(known))
    assert found.output_error < 1e-5
    assert found.map_error < 1e-5
    assert found.cosine == pytest.approx(1, abs=1e-5)
    assert (found.token_auroc, found.feature_auroc) == (1, 1)


def test_a_random_map_has_neither():
    known = linear_network(SMALL, seed=0)
    found = linear_found(known, randomised_(true_part(known), seed=1))
    assert found.output_error > 0.9
    assert found.map_error > 0.9
    assert found.cosine < 0.8
    assert found.feature_auroc < 0.8


def test_a_wrong_sign_in_one_interaction_is_an_error_of_the_map():
    known = linear_network(SMALL, seed=0)
    part = true_part(known)
    with torch.no_grad():
        part.W_dec[3] *= -1
    error = linear_found(known, part).map_error
    assert error == pytest.approx(2 * known.A[:, 3].norm().item() / known.A.norm().item(), rel=1e-4)


def test_the_network_computes_its_map():
    known = linear_network(SMALL, seed=2)
    rows = known.draw(3, 6, seed=0)
    site = "blocks.0.mlp.out"
    y = known.subject.run(rows, capture=[site]).sites[site][:, 1:]
    wanted = known.code[rows[:, 1:] - 1] @ known.A.T @ known.write
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-4)


def test_a_fit_from_data_finds_the_features_of_a_linear_network():
    known = linear_network(SMALL.model_copy(update={"tokens": 300, "per_token": 1}), seed=0)
    fit = KnownFitSettings(k=4, latents=2, steps=250, joint_steps=0)
    rows = known.draw(100, 15, seed=3)
    parts = {
        start: fit_known(known.subject, rows, start=start, seed=0, settings=fit, kinds=("mlp",))[
            "L0.mlp"
        ]
        for start in ("data", "untrained")
    }
    found = {start: linear_found(known, part) for start, part in parts.items()}
    assert found["data"].map_error < 0.1
    assert found["data"].token_auroc > 0.97
    assert found["untrained"].map_error > 0.8


def test_waves_have_their_frequency_and_noise_has_none():
    p, pairs = 13, all_pairs(13)
    turn = 2 * torch.pi * pairs.float() / p
    wave = ((3 * turn[:, 0] + 0.4).cos() + (3 * turn[:, 1] - 1).cos()).relu()
    noise = torch.randn(p * p, generator=torch.Generator().manual_seed(0))
    share = frequency_shares(torch.stack([wave, noise], 1), p)
    assert share[0].argmax() == 2
    assert share[0, 2] > 0.95
    assert share[1].max() < 0.5


def test_the_hand_set_network_keeps_its_frequencies_and_a_random_one_has_none():
    model = exact_modular(29, (2, 5, 9))
    fit = KnownFitSettings(k=12, steps=250, batch=256)
    part = fit_modular(model, start="data", latents=128, seed=0, settings=fit)
    found = modular_found(model, part)
    assert sorted(found.key) == [2, 5, 9]
    assert found.edge_auroc > found.shuffled_auroc + 0.2
    assert found.edge_auroc > 0.9
    blank = fit_modular(model, start="untrained", latents=128, seed=0, settings=fit)
    assert modular_found(model, blank).kl > 10 * found.kl
    other = untrained_modular(Modular(p=29), seed=0)
    own = fit_modular(other, start="weights", latents=128, seed=0, settings=QUICK)
    assert modular_found(other, own).pure < 0.1


@pytest.fixture(scope="module")
def previous():
    return known_program(
        compile_program(program("previous token"), settings=CompileSettings(rotation=1))
    )


def test_a_program_decompiles_to_its_graph(previous):
    rows, held_out = previous.draw(200, 0), previous.draw(60, 1)
    parts = fit_known(previous.subject, rows, start="weights", seed=0, settings=QUICK)
    net = item_auroc(decompiled_edges(previous.subject, parts, held_out).net, previous.edges)
    features = features_found(previous, parts, held_out)
    assert net > 0.9
    assert features.found == 1
    assert features.correlation > 0.95
    blank = fit_known(previous.subject, rows, start="untrained", seed=0, settings=QUICK)
    assert features_found(previous, blank, held_out).found < 0.5


def test_random_weights_have_nothing_of_the_program(previous):
    control = with_random_weights(previous, seed=0)
    rows, held_out = previous.draw(200, 0), previous.draw(60, 1)
    parts = fit_known(control.subject, rows, start="weights", seed=0, settings=QUICK)
    assert features_found(control, parts, held_out).found < 0.5
    own = previous.subject.model.get_parameter("embed.weight")
    assert not torch.equal(own, control.subject.model.get_parameter("embed.weight"))


def test_tracr_cases_are_known_too(shared_data):
    known = known_tracr(load_tracr(shared_data / "tracr", "case_11"))
    assert known.written
    rows = known.draw(40, 0)
    parts = fit_known(known.subject, rows, start="untrained", seed=0, settings=QUICK)
    assert set(decompiled_edges(known.subject, parts, rows).net) >= set(known.edges)
    assert 0 <= features_found(known, parts, rows).cosine <= 1 + 1e-5
