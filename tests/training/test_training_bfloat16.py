"""Where the processor multiplies bfloat16, subject and encoders run in it: results must hold."""

import copy

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.dictionaries import part as part_module
from unweave.dictionaries.kernels import sparse as sparse_module
from unweave.dictionaries.kernels.sparse import select_topk
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.training import local as local_module
from unweave.training.fit import fit_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.splice import Variant, splice_scores


@pytest.mark.parametrize("heads", [1, 4])
def test_a_bfloat16_product_selects_nearly_what_float32_does(heads):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 64, generator=generator)
    W_enc = torch.randn(256, 64 // heads, generator=generator)
    b_enc = torch.randn(256, generator=generator)
    exact = select_topk(x, W_enc, b_enc, 16, heads=heads, dtype=torch.float32)
    coarse = select_topk(x, W_enc, b_enc, 16, heads=heads, dtype=torch.bfloat16)
    assert coarse.value.dtype == torch.float32
    dense = [torch.zeros(600, 256).scatter(1, c.latent, c.value) for c in (exact, coarse)]
    shared = ((dense[0] > 0) & (dense[1] > 0)).sum() / (dense[0] > 0).sum()
    assert shared > 0.95
    both = (dense[0] > 0) & (dense[1] > 0)
    assert torch.allclose(dense[0][both], dense[1][both], rtol=0.03, atol=0.15)


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def processor(request, monkeypatch):
    """A processor of either kind, whatever this one can do."""
    for module in (part_module, local_module):
        monkeypatch.setattr(module, "product_dtype", lambda: request.param)
    return request.param


def test_only_training_multiplies_in_bfloat16(processor):
    part = Part(part_specs(tiny_llama(), latents=4, k_mlp=16, k_attention=16, skip=False)[0])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in part.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(300, part.spec.d_in, generator=generator)
    exact = copy.deepcopy(part).double()(x.double())

    def error() -> float:
        return ((part(x).double() - exact).norm() / exact.norm()).item()

    assert error() < 1e-5
    assert part.encode(x).value.equal(part.run(x)[1].value)
    part.train()
    assert (1e-3 < error() < 0.1) if processor == torch.bfloat16 else error() < 1e-5
    part.eval()
    assert error() < 1e-5


def test_both_stages_train_as_the_processor_likes_and_leave_exact_parts(processor, monkeypatch):
    asked = []

    def noting(*args, dtype=None, **named):
        asked.append(dtype)
        return select_topk(*args, dtype=dtype, **named)

    monkeypatch.setattr(local_module, "select_topk", noting)
    subject, rows = tiny_llama(), tiny_rows(16)
    specs = part_specs(subject, latents=4, k_mlp=4, k_attention=4, skip=False)
    with Workers(1) as workers:
        parts, _ = fit_parts(subject, specs, rows, workers=workers, seed=1)
        assert set(asked) == {processor}
        asked.clear()
        monkeypatch.setattr(sparse_module, "select_topk", noting)
        settings = JointSettings(tokens=512)
        tune_jointly(subject, parts, rows, workers=workers, seed=2, settings=settings)
        assert set(asked) == {processor}
    assert not any(part.training for part in parts.values())


def spliced_kl(dtype: torch.dtype) -> float:
    subject = tiny_llama()
    subject.model.to(dtype)
    rows = tiny_rows(96)
    specs = part_specs(subject, latents=4, k_mlp=16, k_attention=16, skip=False)
    with Workers(2) as workers:
        parts, _ = fit_parts(subject, specs, rows, workers=workers, seed=1)
        tune_jointly(
            subject, parts, rows, workers=workers, seed=2, settings=JointSettings(tokens=1024)
        )
        assert all(part.W_dec.dtype == torch.float32 for part in parts.values())
        placed = stand_ins(parts.values(), AtStart())
        variants = {"parts": Variant(placed, "propagated")}
        scores = splice_scores(subject, variants, rows[:16], workers=workers)
    return scores["parts"].kl.mean()


def test_a_bfloat16_subject_is_taken_apart_as_well_as_a_float32_one():
    assert spliced_kl(torch.bfloat16) == pytest.approx(spliced_kl(torch.float32), rel=0.2)


@pytest.mark.parametrize("gated", [False, True])
def test_gradients_in_bfloat16_follow_the_weights_through_steps_of_adam(gated):
    """Torch's fused Adam changes weights without counting that: a kept copy would go stale."""
    specs = part_specs(tiny_llama(), latents=4, k_mlp=8, k_attention=8, skip=False, gated=gated)
    part = Part(next(spec for spec in specs if spec.name == "L0.mlp"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in part.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    x = torch.randn(200, part.spec.d_in, generator=generator).requires_grad_()
    adam = torch.optim.Adam(part.parameters(), lr=0.3, fused=True)
    wanted = [x, *part.parameters()]
    for _ in range(3):
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            y, _ = part.run_scaled(x, dtype)
            found[dtype] = torch.autograd.grad(y.square().mean(), wanted)
        for exact, coarse in zip(*found.values(), strict=True):
            assert coarse.dtype == torch.float32
            assert (coarse - exact).norm() < 0.15 * exact.norm()
        for parameter, gradient in zip(part.parameters(), found[torch.bfloat16][1:], strict=True):
            parameter.grad = gradient.contiguous()
        adam.step()
