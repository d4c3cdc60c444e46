"""Where the processor multiplies bfloat16, subject and encoders run in it: results must hold."""

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.dictionaries.kernels.sparse import select_topk
from unweave.pipeline.fitting import part_specs
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
