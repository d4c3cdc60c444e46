"""The strict aggregation test of decompiled networks: masks at every position, all parts."""

import copy

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.training.fit import fit_parts
from unweave.training.local import LocalSettings
from unweave.validate.interventions.aggregation_network import (
    NetworkAggregationSettings,
    aggregate_network,
    contexts_of,
    explanations,
    masked_logits,
    unions,
)

ROWS = tiny_rows(20, 6)
SETTINGS = NetworkAggregationSettings(unions=(1, 2, 8), asked=12, bound=0.02)


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def parts(subject):
    from unweave.pipeline.fitting import part_specs

    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, skip=False, k_query=4, k_key=4)
    with Workers(1) as workers:
        found, _ = fit_parts(
            subject, specs, tiny_rows(40, 16, seed=2), workers=workers, seed=0,
            settings=LocalSettings(batch=300),
        )  # fmt: skip
    return found


def test_keeping_what_fires_is_the_decompiled_network(subject, parts):
    contexts = contexts_of(subject, parts, ROWS)
    known = explanations(subject, parts, contexts, SETTINGS)
    for settings in (SETTINGS, SETTINGS.model_copy(update={"reselect": True})):
        made = masked_logits(subject, parts, ROWS, known.fires, settings)
        torch.testing.assert_close(made, contexts.made, atol=1e-3, rtol=1e-3)
        nothing = masked_logits(subject, parts, ROWS, known.fires & False, settings)
        assert (nothing - contexts.made).abs().max() > 0.1


def test_every_position_is_masked(subject, parts):
    """Masking the last position alone would leave the context's keys and values as they are."""
    contexts = contexts_of(subject, parts, ROWS)
    known = explanations(subject, parts, contexts, SETTINGS)
    n = parts["L0.q"].spec.n_latents
    only_keys = known.fires.clone()
    only_keys[:, n : 2 * n] = False  # parts lie in the order q, k, attn, mlp
    assert list(parts)[:2] == ["L0.q", "L0.k"]
    # The last position's own key has a say in one score of six; here all six are off.
    made = masked_logits(subject, parts, ROWS, only_keys, SETTINGS)
    assert (made - contexts.made).abs().max() > 1e-2


def test_explanations_are_small_and_keep_their_bound(subject, parts):
    contexts = contexts_of(subject, parts, ROWS)
    tight, loose = (
        explanations(subject, parts, contexts, SETTINGS.model_copy(update={"bound": bound}))
        for bound in (1e-6, 0.1)
    )
    assert loose.needed.sum() < tight.needed.sum() <= tight.fires.sum()
    assert not (loose.needed & ~loose.fires).any()


def test_unions_hold_their_own_or_others(subject, parts):
    known = explanations(subject, parts, contexts_of(subject, parts, ROWS), SETTINGS)
    found = unions(known, 12, 3, torch.Generator().manual_seed(0))
    assert not (known.needed[:12] & ~found["own"]).any()
    assert (known.needed[:12] & ~found["others"]).any()
    assert not (found["others"] & ~known.needed.any(0)).any()
    assert torch.equal(found["own"].sum(1), found["random"].sum(1))
    first = unions(known, 12, 1, torch.Generator().manual_seed(0))
    assert torch.equal(first["own"], known.needed[:12])


def test_the_whole_test_says_what_each_union_costs(subject, parts):
    found = aggregate_network(subject, parts, ROWS, SETTINGS)
    assert found.kl["own"][1].value <= 3 * found.plain.value + SETTINGS.bound
    assert found.nothing.value > found.plain.value
    assert found.size["own"][1] < found.size["own"][2] < found.size["own"][8]
    assert found.size["fires"][8] > found.size["others"][8]
    assert found.needed < found.fires
    # What others need is not what one needs oneself.
    assert found.kl["others"][1].value > found.kl["own"][1].value


def balanced(parts: dict[str, Part], size: float) -> dict[str, Part]:
    """The last MLP's output split in two: a latent always on writes `size` times a direction, and
    the offset takes it back."""
    changed = copy.deepcopy(parts)
    part = changed["L1.mlp"]
    direction = torch.randn(part.spec.d_out, generator=torch.Generator().manual_seed(0))
    part.W_enc.data[0], part.b_enc.data[0] = 0, size
    part.W_dec.data[0] = direction / direction.norm()
    part.b_dec.data -= size * part.W_dec.data[0]
    return changed


def test_latents_that_the_offset_takes_back_are_in_every_explanation(subject, parts):
    """Left out, they would move every prediction; so explanations hold them, and unions too."""
    odd = balanced(parts, 80.0)
    contexts = contexts_of(subject, odd, ROWS)
    known = explanations(subject, odd, contexts, SETTINGS)
    at = sum(p.spec.n_latents for n, p in odd.items() if n != "L1.mlp")
    assert list(odd)[-1] == "L1.mlp"
    assert known.needed[:, at].float().mean() > 0.9
    keep = known.fires.clone()
    keep[:, at] = False
    moved = masked_logits(subject, odd, ROWS, keep, SETTINGS)
    assert (moved - contexts.made).abs().max() > 1
