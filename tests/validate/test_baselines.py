"""Baselines against the blocks they describe: exact when nothing is left out, bad when all is."""

import pytest
import torch
from tiny_subject import FAMILIES, family_subject, tiny_llama

from unweave.dictionaries.part import Part
from unweave.errors import UserError
from unweave.pipeline.fitting import part_specs
from unweave.validate.baselines import (
    ExactAttentionOutput,
    ExactMLP,
    MeanOutput,
    SignedLatents,
    random_part,
    top_neurons,
    top_pca,
)

TOKENS = torch.randint(3, 60, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_from_weights_are_the_subjects_own(family):
    subject = family_subject(family)
    sites = ["blocks.1.mlp.in", "blocks.1.mlp.out", "blocks.1.attn.z", "blocks.1.attn.out"]
    with torch.inference_mode():
        at = subject.run(TOKENS, capture=sites).sites
        mlp = ExactMLP(subject.mlp_weights(1))(at["blocks.1.mlp.in"])
        out = ExactAttentionOutput(subject.attention_weights(1))(at["blocks.1.attn.z"])
    assert torch.allclose(mlp, at["blocks.1.mlp.out"], atol=1e-5)
    assert torch.allclose(out, at["blocks.1.attn.out"], atol=1e-5)


def test_blocks_of_a_bfloat16_subject_are_float32_inside():
    weights = tiny_llama().mlp_weights(0)
    halved = {
        n: w.bfloat16() if isinstance(w, torch.Tensor) else w for n, w in vars(weights).items()
    }
    coarse = type(weights)(**halved)
    back = type(weights)(
        **{n: w.float() if isinstance(w, torch.Tensor) else w for n, w in halved.items()}
    )
    x = torch.randn(20, 32).bfloat16()
    assert ExactMLP(coarse).neurons(x.float()).equal(ExactMLP(back).neurons(x.float()))
    assert ExactMLP(coarse)(x).equal(ExactMLP(back)(x.float()).bfloat16())
    assert ExactMLP(coarse)(x).dtype == torch.bfloat16


def test_an_unknown_activation_function_is_named():
    weights = tiny_llama().mlp_weights(0)
    with pytest.raises(UserError, match="squared_relu_of_mine"):
        ExactMLP(type(weights)(**{**vars(weights), "activation": "squared_relu_of_mine"}))


@pytest.fixture
def block():
    return ExactMLP(tiny_llama().mlp_weights(0))


def test_all_neurons_are_the_block_and_one_is_not(block):
    x, start = torch.randn(20, 32), torch.zeros(32)
    assert torch.allclose(top_neurons(block, start, 48)(x), block(x), atol=1e-4)
    assert not torch.allclose(top_neurons(block, start, 1)(x), block(x), atol=1e-1)


def test_the_neurons_kept_are_those_that_write_most(block):
    x = torch.randn(5, 32)
    code = top_neurons(block, torch.zeros(32), 3).encode(x)
    written = block.neurons(x).abs() * block.W_out.norm(dim=1)
    assert torch.equal(code.latent.sort(1).values, written.topk(3).indices.sort(1).values)


def test_all_principal_directions_are_the_block_and_error_falls_with_more(block):
    x, start = torch.randn(200, 32), torch.zeros(32)
    y = block(x)
    assert torch.allclose(top_pca(block, y, start, 32)(x), y, atol=1e-3)
    errors = [(top_pca(block, y, start, k)(x) - y).square().mean() for k in (1, 4, 16)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_rows_begin_with_the_constant_of_the_start_token(block):
    start = torch.full((32,), 7.0)
    x = torch.randn(2, 5, 32)
    for stand_in in (top_neurons(block, start, 4), MeanOutput(torch.randn(50, 32), start)):
        assert torch.equal(stand_in(x)[:, 0], start.expand(2, -1))


def test_mean_ablation_writes_the_mean():
    y = torch.randn(50, 32)
    out = MeanOutput(y, torch.zeros(32))(torch.randn(2, 5, 32))
    assert torch.allclose(out[:, 1:], y.mean(0).expand(2, 4, -1))


def test_signed_latents_are_never_negative_and_keep_the_sign_in_the_index(block):
    few = top_neurons(block, torch.zeros(32), 6)
    signed = SignedLatents(few)
    x = torch.randn(30, 32)
    plain, code = few.encode(x), signed.encode(x)
    assert signed.n_latents == 96
    assert (code.value >= 0).all()
    assert (plain.value < 0).any()
    back = torch.where(code.latent >= 48, -code.value, code.value)
    assert torch.equal(back, plain.value)
    assert torch.equal(code.latent % 48, plain.latent)


def test_a_random_part_has_the_norms_of_the_fitted_one_and_nothing_else():
    spec = part_specs(tiny_llama(), latents=2, k_mlp=4, k_attention=4, skip=True)[1]
    part = Part(spec)
    with torch.no_grad():
        for tensor in part.parameters():
            tensor.copy_(torch.randn(tensor.shape))
    control = random_part(part, torch.randn(40, 32), seed=3)
    assert torch.allclose(control.W_enc.norm(dim=1), part.W_enc.norm(dim=1), atol=1e-5)
    cosine = torch.cosine_similarity(control.W_dec, part.W_dec, dim=1)
    assert cosine.abs().mean() < 0.3
    assert control.W_skip is None
