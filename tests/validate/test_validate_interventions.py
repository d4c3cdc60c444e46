"""The intervention test: exact where it must be, and controls that come out bad."""

import numpy as np
import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.validate.interventions.agreement import agreement
from unweave.validate.interventions.latents import Intervention, latents_on, partners, setting
from unweave.validate.interventions.measuring import InterventionSettings, intervene
from unweave.validate.placed import Placed, placed, run_with

SITE, D, ROWS = "blocks.1.resid_pre", 32, tiny_rows(12, 10)
ALL = InterventionSettings(latents=12, rows=4)


def some(site: str = SITE) -> Placed:
    found = bump(Dictionary(autoencoder(site, D, 48, TopK(k=4)))).requires_grad_(False).eval()
    return placed("some", found)


def idle_after_site():
    """Block 1 writes nothing, so what is added to its input reaches the final norm untouched."""
    subject = tiny_llama()
    block = subject.model.model.layers[1]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    return subject


def test_direct_effect_is_exact_where_nothing_lies_between_and_its_controls_are_not():
    for act, found in intervene(idle_after_site(), some(), ROWS, ALL).items():
        every = found.agreements(ALL.bootstrap)
        right = every["direct", "own"]
        np.testing.assert_allclose(
            found.predicted["direct", "own"], found.measured, atol=2e-4, rtol=1e-3, err_msg=act
        )
        assert right.sign.value > 0.95
        assert right.slope.value == pytest.approx(1, abs=0.01)
        assert right.r2.value > 0.999
        for wrong in ("partner", "random"):
            assert every["direct", wrong].r2.value < 0.7


def test_gradient_is_exact_for_small_changes_whatever_lies_between():
    small = InterventionSettings(acts=(Intervention(kind="mean"),), latents=12, rows=4)
    one = some()
    with torch.no_grad():
        one.coder.W_dec.mul_(1e-2)
    # Small numbers in single precision: the subject computes in double.
    subject = tiny_llama()
    subject.model.double()
    found = intervene(subject, one, ROWS, small)["mean"].agreements(small.bootstrap)
    assert found["gradient", "own"].r2.value > 0.98
    assert found["gradient", "own"].slope.value == pytest.approx(1, abs=0.05)
    assert found["gradient", "random"].r2.value < 0.5
    assert found["direct", "own"].r2.value < found["gradient", "own"].r2.value


def test_setting_changes_one_latent_and_zero_is_ablation():
    subject, one = tiny_llama(), some()
    latents = latents_on(subject, one, ROWS)
    latent = int(latents.mass.argmax())
    code = one.coder.encode(torch.randn(20, D))
    changed = setting(latent, torch.full((2, 10), 3.0))(code, (2, 10)).dense()
    wanted = code.dense()
    wanted[:, latent] = 3.0
    assert torch.equal(changed, wanted)
    same = setting(latent, latents.values[:, :, latent])
    kept = run_with(subject, ROWS, [one], edit=same, keep_error=True).logits
    torch.testing.assert_close(kept, subject.run(ROWS).logits, atol=1e-4, rtol=1e-4)


def test_partners_are_others_of_like_frequency():
    latents = latents_on(tiny_llama(), some(), ROWS)
    chosen = (latents.mass > 0).nonzero()[:, 0]
    found = partners(latents, chosen)
    assert not (found == chosen).any()
    near = (latents.frequency[found].log() - latents.frequency[chosen].log()).abs().mean()
    mixed = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))]
    far = (latents.frequency[mixed].log() - latents.frequency[chosen].log()).abs().mean()
    assert near < 0.7 * far


def test_agreement_by_hand_and_by_chance():
    m = np.arange(40.0) - 20
    latent = np.arange(40) // 4
    right = agreement(2 * m, m, latent)
    assert right.sign.value == right.rank.value == 1
    assert right.slope.value == pytest.approx(0.5)
    tied = agreement(np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 2, 9]), np.zeros(4, dtype=int))
    assert tied.rank.value == tied.rank_per_latent.value == pytest.approx(1)
    wrong = agreement(np.random.default_rng(0).permutation(m), m, latent)
    assert abs(wrong.rank.value) < 0.35
    assert wrong.rank.low < 0 < wrong.rank.high


def test_a_dictionary_that_never_fires_is_no_subject_of_a_test():
    silent = Dictionary(autoencoder(SITE, D, 48, TopK(k=4))).requires_grad_(False).eval()
    with pytest.raises(UserError, match="nothing to intervene"):
        intervene(tiny_llama(), placed("silent", silent), ROWS, ALL)
