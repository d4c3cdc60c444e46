"""Effects on all logits: exact for a linear readout, and wrong directions predict badly."""

import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.validate.interventions import effects
from unweave.validate.interventions.effects import (
    LogitEffects,
    LogitEffectSettings,
    logit_effects_of,
)
from unweave.validate.interventions.latents import latents_on, setting
from unweave.validate.placed import Placed, placed

SITE, D, ROWS = "blocks.1.resid_pre", 32, tiny_rows(12, 10)
FEW = LogitEffectSettings(latents=16, places=4)


def some(site: str = SITE, width: int = D, *, write: float = 1.0) -> Placed:
    found = bump(Dictionary(autoencoder(site, width, 48, TopK(k=4)))).requires_grad_(False).eval()
    with torch.no_grad():
        found.W_dec.mul_(write)
    return placed("some", found)


def linear_readout(*, between: bool = False):
    """A network in which nothing but the final norm lies between the site and the logits."""
    subject = tiny_llama()
    block = subject.model.model.layers[1]
    if not between:
        with torch.no_grad():
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
    # Small changes of logits in single precision would be noise.
    subject.model.double()
    return subject


@pytest.mark.parametrize("multiple", [0.0, 3.0])
def test_the_direct_effect_is_exact_where_the_readout_is_linear(multiple):
    small = some(write=1e-3)
    settings = FEW.model_copy(update={"multiple": multiple})
    found = logit_effects_of(linear_readout(), small, ROWS, settings)
    # The scale is held, which is off by the part of the direction that lies along the stream.
    assert found.own.slope.value == pytest.approx(1, abs=0.1)
    assert found.own.r2.value > 0.9
    assert found.own.rank.value > 0.9
    assert found.own.sign.value > 0.95
    assert found.own.slope.low <= found.own.slope.value <= found.own.slope.high
    for wrong in (found.partner, found.random):
        assert wrong.r2.value < 0.4
        assert abs(wrong.rank.value) < 0.5
        assert wrong.sign.value < 0.8
        assert wrong.rank.high < found.own.rank.low


def test_a_layer_in_between_makes_the_prediction_worse():
    exact, hidden = (
        logit_effects_of(linear_readout(between=each), some(write=1e-3), ROWS, FEW)
        for each in (False, True)
    )
    assert hidden.own.r2.value < exact.own.r2.value - 0.05


def test_a_report_without_its_controls_cannot_be_made():
    found = logit_effects_of(linear_readout(), some(), ROWS, FEW)
    assert len(found.latents) == len(set(found.latents)) == 16
    assert 16 <= found.places <= 64
    with pytest.raises(TypeError, match="partner"):
        LogitEffects(own=found.own, latents=found.latents, places=found.places)
    assert logit_effects_of(linear_readout(), some(), ROWS, FEW) == found


def test_what_cannot_be_tested_is_refused():
    subject = linear_readout()
    with pytest.raises(UserError, match="multiple of 1"):
        logit_effects_of(subject, some(), ROWS, FEW.model_copy(update={"multiple": 1.0}))
    with pytest.raises(UserError, match="width"):
        logit_effects_of(subject, some("blocks.1.mlp.mid", 48), ROWS, FEW)


def test_a_row_is_changed_at_one_place_alone_where_the_latent_is_active(monkeypatch):
    subject, one = linear_readout(between=True), some()
    rows = latents_on(subject, one, ROWS).values
    seen = []

    def watch(latent, value):
        known = rows[:, :, latent]
        # The row that differs at fewest places is the one that was changed.
        apart = (value[:, None] != known[None]).sum(2).min(1)
        seen.append((apart.values, (known[apart.indices] - value).abs().sum(1)))
        return setting(latent, value)

    monkeypatch.setattr(effects, "setting", watch)
    found = logit_effects_of(subject, one, ROWS, FEW)
    assert len(seen) == len(found.latents)
    assert all((count <= 1).all() for count, _ in seen)
    assert sum(int((size > 0).sum()) for _, size in seen) > found.places / 2
