"""Attribution maps on functions whose right map is known, and checks that must fail a bad one."""

import math

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.pca import pca
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.subject import Subject
from unweave.validate.attribution_maps.curves import truth
from unweave.validate.attribution_maps.maps import (
    CONTROLS,
    MAPS,
    gradient,
    incompleteness,
    integrated,
    occlusion,
    position,
    rarity,
    rollout,
)
from unweave.validate.attribution_maps.randomise import HEAD, shuffled, stages
from unweave.validate.attribution_maps.ranks import ranks, spearman
from unweave.validate.attribution_maps.sanity import SanitySettings, sanity
from unweave.validate.attribution_maps.scores import (
    Asked,
    ask,
    latent_score,
    predicted,
    token_score,
)
from unweave.validate.attribution_maps.told import ToldSettings, told
from unweave.validate.placed import placed

WEIGHTS = torch.tensor([0.0, 3.0, -1.0, 0.5, 2.0, 0.0])
"""What each of the tokens of a known linear score counts."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> Asked:
    """f(x) = sum over tokens of weight times the vector's first coordinate."""
    x = draw(7, 6, 4)
    baseline = x.mean((0, 1)).expand_as(x).clone()
    baseline[:, 0] = x[:, 0]
    rows = torch.zeros(7, 6, dtype=torch.long)
    return Asked(rows, x, baseline, lambda x: (x[..., 0] * WEIGHTS).sum(1))


def curved(power: int = 3) -> Asked:
    return linear()._replace(score=lambda x: ((x[..., 0] * WEIGHTS).sum(1)) ** power)


def test_on_a_linear_function_three_methods_give_the_one_right_map() -> None:
    asked = linear()
    right = WEIGHTS * (asked.x - asked.baseline)[..., 0]
    for method in (gradient, integrated, occlusion):
        torch.testing.assert_close(method(asked), right, atol=1e-5, rtol=1e-4)


def test_integrated_gradients_add_up_on_a_curve_and_others_do_not() -> None:
    asked = curved()
    gap = (asked.score(asked.x) - asked.score(asked.baseline)).abs().mean()
    assert incompleteness(asked, integrated(asked)).abs().max() < 1e-4 * gap
    for method in (gradient, occlusion):
        assert incompleteness(asked, method(asked)).abs().mean() > 0.1 * gap


def test_a_few_nodes_are_exact_on_polynomials_and_too_few_are_not() -> None:
    asked = curved(power=5)
    gap = (asked.score(asked.x) - asked.score(asked.baseline)).abs().mean()
    assert incompleteness(asked, integrated(asked, steps=3)).abs().max() < 1e-3 * gap
    assert incompleteness(asked, integrated(asked, steps=1)).abs().mean() > 0.05 * gap


def test_the_right_map_of_a_linear_function_explains_all_and_others_do_not() -> None:
    asked = linear()
    right = truth(asked, occlusion(asked))
    assert right.linear_fvu.value < 1e-9
    assert right.deletion_gain.value > 0.1
    assert right.insertion_gain.value > 0.1
    backwards = truth(asked, -occlusion(asked))
    assert backwards.deletion_gain.value < -0.1
    assert backwards.linear_fvu.value > 2
    chance = truth(asked, draw(7, 6, seed=3))
    assert abs(chance.deletion_gain.value) < right.deletion_gain.value / 2
    assert chance.linear_fvu.value > 0.5


def test_ranks_share_ties_and_correlate_as_by_hand() -> None:
    assert ranks(torch.tensor([[3.0, 1.0, 3.0, 2.0]])).tolist() == [[2.5, 0.0, 2.5, 1.0]]
    one = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 4)
    other = torch.tensor(
        [[10.0, 20.0, 30.0, 31.0], [4.0, 3.0, 2.0, 1.0], [5.0] * 4, [2.0, 1.0, 4.0, 3.0]]
    )
    assert spearman(one, other).tolist() == pytest.approx([1.0, -1.0, math.nan, 0.6], nan_ok=True)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_llama(seed=2, weight=0.3)


@pytest.fixture(scope="module")
def asked(subject: Subject) -> Asked:
    rows = tiny_rows(6, 10, seed=4)
    return ask(subject, rows, token_score(subject, rows, predicted(subject, rows)))


def test_the_score_of_a_prediction_is_its_logit_above_the_mean(
    subject: Subject, asked: Asked
) -> None:
    logits = subject.run(asked.rows).logits[:, -1]
    best = logits.max(1).values - logits.mean(1)
    torch.testing.assert_close(asked.score(asked.x), best, atol=1e-4, rtol=1e-4)


def test_in_a_network_integrated_gradients_add_up(asked: Asked) -> None:
    gap = (asked.score(asked.x) - asked.score(asked.baseline)).abs().mean()
    lacking = incompleteness(asked, integrated(asked)).abs().mean()
    assert lacking < 0.02 * gap
    assert incompleteness(asked, gradient(asked)).abs().mean() > 5 * lacking


def test_the_start_token_gets_nothing_where_maps_compare(asked: Asked) -> None:
    for method in (gradient, integrated, occlusion):
        assert method(asked)[:, 0].abs().max() == 0


def test_rollout_is_a_distribution_and_follows_a_pattern_that_is_known(subject: Subject) -> None:
    rows = tiny_rows(3, 8)
    found = rollout(subject, rows)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    patterns = [f"blocks.{i}.attn.pattern" for i in range(2)]
    a, b = (p.mean(1) for p in subject.run(rows, capture=patterns).sites.values())
    eye = torch.eye(8)
    by_hand = ((b + eye) / 2 @ ((a + eye) / 2))[:, -1]
    torch.testing.assert_close(found, by_hand)


@pytest.mark.parametrize("activation", [ReLU(), TopK(k=8)])
def test_a_latents_activation_is_scored_as_it_is_encoded(
    subject: Subject, activation: ReLU | TopK
) -> None:
    torch.manual_seed(0)
    site = "blocks.0.resid_post"
    dictionary = Dictionary(autoencoder(site, 32, 24, activation)).eval()
    with torch.no_grad():
        dictionary.W_enc.copy_(draw(24, 32) * 0.3)
    rows = tiny_rows(5, 8)
    vectors = subject.run(rows, capture=[site]).sites[site][:, -1]
    code = dictionary.encode(vectors).dense()
    latent = code.argmax(1)
    asked = ask(subject, rows, latent_score(subject, placed("d", dictionary), rows, latent))
    torch.testing.assert_close(asked.score(asked.x), code.max(1).values, atol=1e-4, rtol=1e-4)
    assert (gradient(asked)[:, 1:].abs().amax(1) > 0).all()


def test_what_no_gradient_passes_is_refused_by_name(subject: Subject) -> None:
    standing = placed("d", Dictionary(autoencoder("blocks.0.resid_post", 32, 8, ReLU())))
    classical = standing._replace(name="pca-k8", coder=pca(draw(40, 32), k=8))
    with pytest.raises(UserError, match="code of pca-k8"):
        latent_score(subject, classical, tiny_rows(1), torch.tensor([0]))


def test_shuffling_moves_numbers_within_the_parts_named_and_nowhere_else(subject: Subject) -> None:
    assert stages(subject) == [HEAD, "blocks.1", "blocks.0"]
    assert stages(tiny_llama(tie_word_embeddings=True)) == ["blocks.1", "blocks.0"]
    before = {n: p.clone() for n, p in subject.model.named_parameters()}
    changed = shuffled(subject, [HEAD, "blocks.1"], seed=1)
    again = shuffled(subject, ["blocks.1"], seed=1)
    for name, parameter in changed.model.named_parameters():
        assert torch.equal(dict(subject.model.named_parameters())[name], before[name])
        moved = "layers.1." in name or "lm_head" in name
        assert torch.equal(parameter, before[name]) != moved
        assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
        if "layers.1." in name:
            assert torch.equal(parameter, dict(again.model.named_parameters())[name])


def test_maps_that_know_no_weights_are_found_out_and_gradients_are_not(subject: Subject) -> None:
    rows = tiny_rows(24, 16, seed=9)
    methods = {name: MAPS[name] for name in ("gradient", "integrated", "occlusion")}
    found = sanity(subject, rows, SanitySettings(most=0.6), maps=methods)
    for name in CONTROLS:
        assert found[name].control
        assert not found[name].passes
        assert all(kept.sizes.value == pytest.approx(1.0) for kept in found[name].kept)
    for name in methods:
        assert found[name].passes, (name, found[name].kept)
        cascade = [kept for kept in found[name].kept if kept.way == "cascading"]
        assert [kept.stage for kept in cascade] == [HEAD, "blocks.1", "blocks.0"]
        assert cascade[-1].signed.value < 0.5
        assert cascade[-1].sizes.value > found[name].floor.value - 0.3


def test_a_cascade_ends_with_everything_whatever_stages_are_looked_at(subject: Subject) -> None:
    settings = SanitySettings(ways=("cascading",), stages=("blocks.1",))
    found = sanity(subject, tiny_rows(4, 8), settings, maps={})
    assert [kept.stage for kept in found["position"].kept] == ["blocks.1", "blocks.0"]


def test_rare_tokens_have_the_bits_of_their_frequency() -> None:
    rows = torch.tensor([[1, 5, 5, 7], [1, 5, 5, 9]])
    assert rarity(rows)[0].tolist() == [2.0, 1.0, 1.0, 3.0]
    assert position(rows)[0].tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1.0])


def test_a_reader_of_all_complete_maps_knows_the_network_at_a_price() -> None:
    subject, rows = tiny_llama(seed=2, weight=0.3, vocab_size=16), tiny_rows(5, 8, vocab=16)
    settings = ToldSettings(tokens=(1, 4, 16))
    nothing, one, several, everything = told(subject, rows, MAPS["integrated"], settings)
    assert nothing.length == 0
    assert one.length == pytest.approx(math.log2(16) + 7 * 7)
    assert everything.length == pytest.approx(16 * one.length)
    assert everything.loss.value < 0.1 * nothing.loss.value
    assert several.loss.value < nothing.loss.value
    untrue = told(subject, rows, CONTROLS["rarity"], settings)[-1]
    assert untrue.loss.value > 5 * everything.loss.value
