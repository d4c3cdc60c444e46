"""Scores of spliced predictions where the right answer is known, and where it must be bad."""

import math

import numpy as np
import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows
from torch import nn

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.validate.baselines import ExactMLP
from unweave.validate.splice import (
    Variant,
    compare_logits,
    fidelity,
    single_scores,
    splice_scores,
)


def test_equal_logits_lose_nothing():
    rows, logits = tiny_rows(2), torch.randn(2, 16, 64)
    scores = compare_logits(logits, logits, rows)
    assert np.abs(scores.ce_increase).max() == 0
    assert np.abs(scores.kl).max() < 1e-6
    assert (scores.top1_agreement == 1).all()


def test_against_hand_computation():
    # Positions 0..3; only the predictions made at positions 1 and 2 count.
    rows = torch.tensor([[1, 5, 0, 1]])
    original, spliced = torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)
    original[0, 1] = torch.tensor([math.log(3.0), 0.0])  # p = 3/4, 1/4; the truth is token 0
    spliced[0, 1] = torch.tensor([0.0, math.log(3.0)])  # q = 1/4, 3/4
    scores = compare_logits(original, spliced, rows)
    rise = (math.log(4) - math.log(4 / 3)) / 2
    assert scores.ce_increase[0] == pytest.approx(rise, rel=1e-5)
    assert scores.kl[0] == pytest.approx((0.75 - 0.25) * math.log(3) / 2, rel=1e-5)
    assert scores.top1_agreement[0] == 0.5
    assert scores.ce_original[0] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)


def test_variants_share_one_original_and_differ_as_they_should():
    subject, rows = tiny_llama(), tiny_rows(6)
    exact = {f"L{i}.mlp": ExactMLP(subject.mlp_weights(i)) for i in range(2)}

    class Zero(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    with Workers(2) as workers:
        scores = splice_scores(
            subject,
            {
                "exact": Variant(exact, "propagated"),
                "clean": Variant(exact, "clean"),
                "nothing": Variant({name: Zero() for name in exact}, "propagated"),
            },
            rows,
            workers=workers,
        )
    assert all(len(one.kl) == 6 for one in scores.values())
    assert np.abs(scores["exact"].ce_increase).max() < 1e-4
    assert np.abs(scores["clean"].kl).max() < 1e-4
    assert scores["nothing"].kl.mean() > 0.05
    assert np.array_equal(scores["exact"].ce_original, scores["nothing"].ce_original)


def test_single_scores_name_the_part_that_is_bad():
    subject, rows = tiny_llama(), tiny_rows(4)
    placed = {f"L{i}.mlp": ExactMLP(subject.mlp_weights(i)) for i in range(2)}
    placed["L1.mlp"].W_out = -placed["L1.mlp"].W_out
    with Workers(1) as workers:
        scores = single_scores(subject, placed, rows, workers=workers)
    assert scores["L0.mlp"].kl.mean() < 1e-4
    assert scores["L1.mlp"].kl.mean() > 0.01


def identity_part(width=8, k=8, scale=1.0):
    """Writes its input back: +e_i and -e_i for every axis, k of them."""
    spec = PartSpec(
        name="L0.mlp", input_site="a", output_site="a", d_in=width, d_out=width,
        n_latents=2 * width, k=k,
    )  # fmt: skip
    part = Part(spec)
    with torch.no_grad():
        part.W_enc.copy_(torch.cat([torch.eye(width), -torch.eye(width)]))
        part.W_dec.copy_(scale * part.W_enc)
    return part


def test_fidelity_of_a_perfect_a_shrunken_and_a_silent_part():
    x = torch.randn(500, 8)
    perfect = fidelity(identity_part(), x, x)
    assert perfect.fvu < 1e-10
    assert perfect.l2_ratio == pytest.approx(1.0)
    assert perfect.l0 == pytest.approx(8.0)
    shrunken = fidelity(identity_part(scale=0.5), x, x)
    assert shrunken.l2_ratio == pytest.approx(0.5)
    assert shrunken.fvu == pytest.approx(0.25, rel=0.05)
    silent = fidelity(identity_part(scale=0.0), x, x)
    assert silent.fvu == pytest.approx(1.0, rel=0.05)


def test_a_massive_activation_rules_the_raw_fvu_and_not_the_robust_one():
    x = torch.randn(500, 8)
    y = x.clone()
    y[0] += 1000.0  # an output the part knows nothing of
    found = fidelity(identity_part(), x, y)
    assert found.fvu > 0.9
    assert found.fvu_robust < 1e-6
