"""The aggregation test: free where latents are idle elsewhere, dear where they balance out."""

import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.validate.interventions.aggregation import (
    AggregationSettings,
    aggregate,
    explain,
    inputs_of,
)
from unweave.validate.interventions.masking import MaskingSettings, kept_only
from unweave.validate.placed import Placed, placed

SITE, D, N, ROWS = "blocks.1.resid_pre", 32, 48, tiny_rows(20, 6)
SETTINGS = AggregationSettings(unions=(1, 2, 8), asked=20)


def some(k: int = 8, site: str = SITE) -> Placed:
    d = bump(Dictionary(autoencoder(site, D, N, TopK(k=k)))).requires_grad_(False).eval()
    return placed(site, d)


def test_keeping_all_is_the_original_and_keeping_what_is_active_too():
    subject, one = tiny_llama(), some()
    inputs = inputs_of(subject, [one], ROWS)
    every = torch.ones(len(ROWS), N, dtype=torch.bool)
    for settings in (
        MaskingSettings(), MaskingSettings(strict=False), MaskingSettings(where="encode"),
        MaskingSettings(fill="mean"),
    ):  # fmt: skip
        assert kept_only(subject, [one], inputs, every, settings).abs().max() < 1e-4
        nothing = kept_only(subject, [one], inputs, ~every, settings)
        assert nothing.mean() > 0.01


def test_lenient_masks_touch_the_asked_position_alone():
    subject, one = tiny_llama(), some(site="blocks.1.resid_post")
    inputs = inputs_of(subject, [one], ROWS)
    none = torch.zeros(len(ROWS), N, dtype=torch.bool)
    # After the last block no position reads another, so the context's masks cannot matter.
    strict, lenient = (
        kept_only(subject, [one], inputs, none, MaskingSettings(strict=each))
        for each in (True, False)
    )
    torch.testing.assert_close(strict, lenient, atol=1e-4, rtol=1e-3)
    early = some(site="blocks.0.resid_pre")
    inputs = inputs_of(subject, [early], ROWS)
    strict, lenient = (
        kept_only(subject, [early], inputs, none, MaskingSettings(strict=each))
        for each in (True, False)
    )
    assert (strict - lenient).abs().max() > 1e-2


def test_masked_at_encode_time_others_take_their_place():
    subject, one = tiny_llama(), some(k=2)
    inputs = inputs_of(subject, [one], ROWS)
    half = torch.rand(len(ROWS), N, generator=torch.Generator().manual_seed(0)) < 0.5
    after, encode = (
        kept_only(subject, [one], inputs, half, MaskingSettings(where=where))
        for where in ("after", "encode")
    )
    assert (after - encode).abs().max() > 1e-3


def test_explanations_keep_their_bound_and_are_smaller_than_what_is_active():
    subject, one = tiny_llama(), some()
    found = explain(subject, [one], inputs_of(subject, [one], ROWS), MaskingSettings(bound=0.05))
    assert (found.kl <= 0.05 + 1e-4).all()
    assert found.needed.sum(1).float().mean() < found.active.mean()
    tight = explain(subject, [one], inputs_of(subject, [one], ROWS), MaskingSettings(bound=1e-6))
    assert tight.needed.sum() > found.needed.sum()


def test_two_coders_are_masked_together():
    two = [some(site="blocks.0.resid_post"), some(site="blocks.1.resid_post")]
    found = aggregate(tiny_llama(), two, ROWS, SETTINGS)
    assert set(found.kl["any"]) == {1, 2, 8}
    assert found.kl["any"][1].value <= SETTINGS.masking.bound + 1e-4
    assert found.size[1] < found.size[2] < found.size[8]


class Balanced:
    """Both latents are always active and write against each other; the first is said to matter."""

    n_latents = 2

    def __init__(self, direction):
        self._rows = torch.stack([direction, -direction])

    def encode(self, x):
        return SparseCode.from_dense(torch.full((len(x), 2), 1.0))

    def decode(self, code):
        return code.dense() @ self._rows

    def directions(self):
        return self._rows


def test_latents_that_balance_each_other_out_fail_when_united():
    subject = tiny_llama()
    direction = 5 * torch.randn(D, generator=torch.Generator().manual_seed(1))
    last = ("blocks.1.resid_post",)
    one = Placed("balanced", Balanced(direction), last, last)
    inputs = inputs_of(subject, [one], ROWS)
    neither, first = torch.tensor([False, False]), torch.tensor([True, False])
    both = torch.tensor([True, True])
    cost = {
        name: kept_only(subject, [one], inputs, keep.expand(len(ROWS), 2), MaskingSettings())
        for name, keep in {"neither": neither, "first": first, "both": both}.items()
    }
    assert cost["both"].abs().max() < 1e-4
    assert cost["neither"].abs().max() < 1e-4
    assert cost["first"].mean() > 0.1


def test_without_latents_in_common_unions_cost_what_the_parts_do():
    # Everything active is needed: whatever is added is idle, so nothing changes.
    strictest = AggregationSettings(
        unions=(1, 8),
        asked=20,
        masking=MaskingSettings(bound=1e-9),
    )
    found = aggregate(tiny_llama(), [some()], ROWS, strictest)
    assert found.kl["any"][8].value == pytest.approx(found.kl["any"][1].value, abs=1e-4)
    assert found.nothing.value > 10 * found.kl["any"][8].value
