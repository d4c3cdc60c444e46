"""A network of linear blocks has an exact decompilation: it must lose nothing, in any mode."""

import numpy as np
import pytest
import torch
import transformers
from tiny_subject import START, tiny_rows

from unweave.activations.window import start_vectors
from unweave.activations.workers import Workers
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import output_site
from unweave.pipeline.fitting import part_specs
from unweave.subject import wrap_module
from unweave.training.fit import fit_parts
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import MeanOutput
from unweave.validate.splice import Variant, single_scores, splice_scores

ROWS = tiny_rows(8, 16, seed=6)


@pytest.fixture(scope="module")
def subject():
    """GPT-2 with the identity for an activation function: every MLP is an affine map."""
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4, n_inner=48,
        activation_function="linear", bos_token_id=START, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.12)
    return wrap_module(model, name="linear")


def exact_part(subject, spec, *, skip: bool) -> Part:
    """The block's own map: as the skip, or along plus and minus every axis of its input, all on."""
    layer = int(spec.name[1])
    if spec.name.endswith("mlp"):
        w = subject.mlp_weights(layer)
        table, bias = w.W_in.T @ w.W_out, w.b_in @ w.W_out + w.b_out
    else:
        w = subject.attention_weights(layer)
        table, bias = w.W_O.flatten(0, 1), w.b_O
    scales = {"input_scale": 0.8, "output_scale": 1.7}
    part = Part(spec.model_copy(update={"n_latents": 64, "k": 64, "skip": skip, **scales}))
    with torch.no_grad():
        part.b_dec.copy_(1.7 * bias)
        if skip:
            part.W_skip.copy_(1.7 / 0.8 * table.T)
        else:
            d_read = part.spec.d_read
            signs = torch.cat([torch.eye(d_read), -torch.eye(d_read)])  # of one head
            part.W_enc.copy_(signs.repeat(part.spec.heads, 1))
            rows = table.view(part.spec.heads, d_read, 32)
            part.W_dec.copy_(1.7 / 0.8 * torch.cat([rows, -rows], dim=1).flatten(0, 1))
    site = output_site(spec.name)
    part.start_output.copy_(start_vectors(subject, ROWS, [site])[site])
    return part


@pytest.mark.parametrize("skip", [True, False])
def test_its_exact_parts_lose_nothing_in_any_mode(subject, skip):
    specs = part_specs(subject, latents=2, k_mlp=4, k_attention=4, skip=False)
    parts = {
        spec.name: exact_part(subject, spec, skip=skip and spec.name.endswith("mlp"))
        for spec in specs
    }
    placed = stand_ins(parts.values(), AtStart())
    with Workers(1) as workers:
        variants = {mode: Variant(placed, mode) for mode in ("clean", "propagated")}
        scores = splice_scores(subject, variants, ROWS, workers=workers)
        scores |= single_scores(subject, placed, ROWS, workers=workers)
    assert len(scores) == 2 + 4
    for name, found in scores.items():
        assert np.abs(found.ce_increase).max() < 1e-4, name
        assert np.abs(found.kl).max() < 1e-5, name
        assert found.top1_agreement.min() == 1, name
    with torch.no_grad():
        logits = DecompiledNetwork(subject, parts)(ROWS)
        torch.testing.assert_close(logits, subject.run(ROWS).logits, rtol=1e-4, atol=1e-4)


def test_a_skip_finds_the_linear_map_by_itself(subject):
    specs = part_specs(subject, latents=1, k_mlp=1, k_attention=4, skip=True)
    mlps = [spec for spec in specs if spec.name.endswith("mlp")]
    with Workers(1) as workers:
        rows = tiny_rows(120, 16, seed=9)
        parts, _ = fit_parts(
            subject, mlps, rows, workers=workers, seed=0, settings=LocalSettings(batch=256, lr=1e-3)
        )
        sites = [spec.output_site for spec in mlps]
        outputs = subject.run(rows, capture=sites).sites
        mean = {
            spec.name: MeanOutput(outputs[spec.output_site][:, 1:].flatten(0, 1), part.start_output)
            for spec, part in zip(mlps, parts.values(), strict=True)
        }
        variants = {
            "fitted": Variant(stand_ins(parts.values(), AtStart()), "propagated"),
            "mean": Variant(mean, "propagated"),
        }
        scores = splice_scores(subject, variants, ROWS, workers=workers)
    assert scores["mean"].kl.mean() > 0.1  # so the blocks do matter
    assert scores["fitted"].kl.mean() < 0.01 * scores["mean"].kl.mean()
