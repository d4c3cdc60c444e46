"""SAEBench's core metrics: exact for what changes nothing and for what writes nothing."""

import math

import pytest
import torch
from tiny_subject import bump, tiny_llama, tiny_rows
from torch.nn import functional as F

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.neurons import coordinates
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols.controls import random_twin
from unweave.validate.protocols.core import CoreSettings, core_on
from unweave.validate.protocols.core_vectors import VectorSums, nearest_cosines, vector_numbers
from unweave.validate.protocols.protocol import Bench

SITE, D, ROWS = "blocks.1.resid_pre", 32, tiny_rows(10, 12)


def silent() -> Dictionary:
    """Writes nothing whatever it reads."""
    return Dictionary(autoencoder(SITE, D, 48, TopK(k=4))).requires_grad_(False).eval()


def some() -> Dictionary:
    return bump(Dictionary(autoencoder(SITE, D, 48, TopK(k=4)))).requires_grad_(False).eval()


def measured(tmp_path, one: Placed, **changes: object) -> dict[str, float]:
    found = core_on(Bench(tiny_llama(), one, tmp_path), ROWS, CoreSettings(**changes))
    return {name: number.value for name, number in (found.numbers | found.controls).items()}


def test_what_changes_nothing_scores_one_and_its_random_twin_less(tmp_path):
    whole = Placed("whole", coordinates(D), (SITE,), (SITE,))
    found = measured(tmp_path, whole)
    assert found["ce_loss_score"] == pytest.approx(1, abs=1e-4)
    assert found["kl_div_score"] == pytest.approx(1, abs=1e-4)
    assert found["explained_variance"] == pytest.approx(1, abs=1e-5)
    assert found["cossim"] == found["l2_ratio"] == pytest.approx(1, abs=1e-5)
    assert found["l0"] == D
    assert found["kl_div_score_random"] < 0.9


def test_what_writes_nothing_is_the_ablation(tmp_path):
    found = measured(tmp_path, placed("silent", silent()), zero_start=False)
    assert found["ce_loss_score"] == pytest.approx(0, abs=1e-4)
    assert found["kl_div_score"] == pytest.approx(0, abs=1e-4)
    assert found["ce_loss_with_sae"] == pytest.approx(found["ce_loss_with_ablation"], abs=1e-5)
    assert found["l0"] == found["frac_alive"] == 0
    published = measured(tmp_path, placed("silent", silent()))
    assert published["kl_div_with_ablation"] != pytest.approx(found["kl_div_with_ablation"])


def test_losses_are_means_over_all_but_the_start_token(tmp_path):
    found = measured(tmp_path, placed("d", some()))
    logits = tiny_llama().run(ROWS).logits[:, 1:-1]
    ce = F.cross_entropy(logits.flatten(0, 1), ROWS[:, 2:].flatten())
    assert found["ce_loss_without_sae"] == pytest.approx(ce.item(), rel=1e-5)


def test_vector_numbers_by_hand():
    d = Dictionary(autoencoder(SITE, 2, 2, TopK(k=1))).requires_grad_(False).eval()
    d.encoder.W_enc.copy_(torch.eye(2))
    d.W_dec.copy_(torch.eye(2))
    d.rescale_([0.5], [0.5])
    sums = VectorSums(placed("d", d), 2)
    x = torch.tensor([[3.0, 4.0], [2.0, 0.0], [0.0, 6.0], [0.0, 2.0]])
    sums.add(x[:2], x[:2])
    sums.add(x[2:], x[2:])
    got = {n: v.value for n, v in vector_numbers(sums, tokens_of_batch=2).items()}
    assert got["l0"] == 1
    assert got["l1"] == (4 + 2 + 6 + 2) / 4
    assert got["cossim"] == pytest.approx((0.8 + 3) / 4)
    error, spread = 9.0, (x - x.mean(0)).square().sum().item()
    assert got["explained_variance"] == pytest.approx(1 - error / spread)
    mean_sq = x.square().sum().item() / 4
    assert got["explained_variance_as_published"] == pytest.approx(
        1 - (error / 4) / (mean_sq - (mean_sq / 2) ** 2)
    )
    assert got["mse"] == pytest.approx(error / 8)
    assert got["mse_as_published"] == pytest.approx(error / 4 / 2)
    assert got["normalized_freq_over_10_percent"] == 1
    assert sums.fired_rows.tolist() == [1, 2]


def test_nearest_cosines_leave_each_row_out():
    rows = torch.tensor([[1.0, 0], [2, 0], [0, 1]])
    assert nearest_cosines(rows).tolist() == pytest.approx([1, 1, 0])
    assert math.isclose(nearest_cosines(torch.eye(3)).max().item(), 0, abs_tol=1e-6)


def test_the_random_twin_is_like_its_model_but_for_its_directions():
    d = some()
    d.rescale_([0.5], [0.5])
    d.encoder.W_enc *= torch.linspace(0.5, 2, 48)[:, None]
    x = torch.randn(300, D, generator=torch.Generator().manual_seed(0)) + 2
    one = placed("d", d)
    twin = random_twin(one, x, x, seed=0).coder
    size = (d.W_enc * 0.5).norm(dim=1) * d.directions().norm(dim=1)
    torch.testing.assert_close(twin.W_enc.norm(dim=1), size)
    torch.testing.assert_close(twin.directions().norm(dim=1), torch.ones(48))
    assert twin.encode(x).support.latent.numel() / 300 == pytest.approx(d.encode(x).l0(), abs=0.5)
    assert torch.cosine_similarity(twin.directions(), d.directions(), dim=1).abs().mean() < 0.3
    again = random_twin(one, x, x, seed=0).coder
    assert torch.equal(again.directions(), twin.directions())
