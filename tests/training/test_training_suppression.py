"""The encoder-frozen finetune against its closed form, on planted and on trained shrinkage."""

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.encoder.pursuit import Pursuit
from unweave.errors import UserError
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.suppression import (
    FinetuneSettings,
    finetune,
    rescaled,
    scale_oracle,
    suppression,
)
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

D, N = 24, 36


def directions(seed: int = 0, n: int = N) -> Tensor:
    rows = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def codes(rows: int, seed: int, n: int = N, share: float = 0.08) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    fires = torch.rand(rows, n, generator=generator) < share
    return fires * (0.5 + torch.rand(rows, n, generator=generator))


def batch(x: Tensor) -> VectorBatch:
    return VectorBatch({"s": x})


def shrunken(shrink: Tensor, seed: int = 0) -> Dictionary:
    """An orthonormal dictionary whose latents come out `shrink` times as strong as they should."""
    basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed))).Q
    dictionary = Dictionary(autoencoder("s", D, len(shrink), ReLU()))
    with torch.no_grad():
        dictionary.W_dec.copy_(basis[: len(shrink)])
        dictionary.W_enc.copy_(basis[: len(shrink)] * shrink[:, None])
        dictionary.b_dec.fill_(0.1)
        dictionary.b_enc.copy_(-(dictionary.W_enc @ dictionary.b_dec))
    return dictionary


def overlapping(seed: int = 0) -> Dictionary:
    """More latents than dimensions, firing wrongly as well as weakly: G is not diagonal."""
    dictionary = Dictionary(autoencoder("s", D, N, ReLU()))
    with torch.no_grad():
        dictionary.W_dec.copy_(directions(seed))
        dictionary.W_enc.copy_(0.7 * dictionary.W_dec)
        dictionary.b_enc.fill_(-0.15)
    return dictionary


def mse(dictionary: Dictionary, x: Tensor) -> float:
    with torch.no_grad():
        return (dictionary(x) - x).square().sum(1).mean().item()


def test_planted_shrinkage_is_measured_and_undone():
    shrink = torch.linspace(0.3, 1.0, D)
    dictionary = shrunken(shrink)
    truth = codes(1500, 1, D)
    x = truth @ dictionary.W_dec.detach() + 0.1
    torch.testing.assert_close(scale_oracle(dictionary, batch(x)), 1 / shrink, rtol=1e-3, atol=0)
    before = suppression(dictionary, batch(x))
    torch.testing.assert_close(before.strength, shrink, rtol=1e-3, atol=0)
    assert before.typical == pytest.approx(shrink.median().item(), rel=0.03)
    assert before.gamma < 0.9
    assert before.l2_ratio < 0.9
    after = rescaled(dictionary, scale_oracle(dictionary, batch(x)))
    written = (after(x) - 0.1).detach() @ dictionary.W_dec.detach().T
    slope = (written * truth).sum(0) / truth.square().sum(0)
    torch.testing.assert_close(slope, torch.ones(D), rtol=1e-3, atol=0)
    assert suppression(after, batch(x)).gamma == pytest.approx(1, abs=1e-3)


def test_the_oracle_is_the_least_squares_solution_and_pulls_the_dead_to_one():
    dictionary = overlapping()
    with torch.no_grad():
        dictionary.b_enc[:3] = -100
    x = codes(2000, 2) @ directions()
    s = scale_oracle(dictionary, batch(x), rows_at_once=300)
    assert torch.equal(s[:3], torch.ones(3))
    code = dictionary.encode(x).dense()[:, 3:]
    # One regression over all coordinates: column i is the flattened f_i d_i.
    columns = (code[:, None, :] * dictionary.W_dec.detach().T[:, 3:]).flatten(0, 1)
    wanted = torch.linalg.lstsq(columns, (x - dictionary.b_dec.detach()).flatten()[:, None])
    torch.testing.assert_close(s[3:], wanted.solution[:, 0], rtol=1e-3, atol=1e-4)
    assert suppression(dictionary, batch(x)).strength[:3].isnan().all()


@pytest.mark.parametrize("activation", [ReLU(), TopK(k=4)])
def test_the_gradient_finetune_reaches_the_oracle(activation):
    dictionary = overlapping()
    twin = Dictionary(autoencoder("s", D, N, activation))
    twin.load_state_dict(dictionary.state_dict())
    x = codes(400, 3) @ directions()
    source = ArraySource({"s": x}, batch=400, steps=250)
    oracle = rescaled(twin, scale_oracle(twin, batch(x)))
    tuned = finetune(twin, source, FinetuneSettings(variant="scale", lr=0.03))
    assert mse(oracle, x) < 0.9 * mse(twin, x)
    assert mse(tuned, x) == pytest.approx(mse(oracle, x), rel=1e-3)
    torch.testing.assert_close(tuned.W_dec, oracle.W_dec, rtol=0.03, atol=0.01)
    wider = finetune(twin, source, FinetuneSettings(variant="decoder", lr=0.01))
    assert mse(wider, x) < 0.97 * mse(oracle, x)
    for changed in (tuned, wider):
        assert torch.equal(changed.encode(x).dense(), twin.encode(x).dense())


def test_a_dictionary_without_suppression_is_left_alone():
    exact = shrunken(torch.ones(D))
    x = codes(1024, 4, D) @ exact.W_dec.detach() + 0.1
    source = ArraySource({"s": x}, batch=512, steps=60)
    tuned = finetune(exact, source)
    torch.testing.assert_close(tuned.W_dec, exact.W_dec, rtol=0, atol=1e-3)
    assert suppression(exact, batch(x)).typical == pytest.approx(1, abs=1e-4)


def test_what_an_l1_penalty_has_shrunk_is_restored_on_vectors_not_trained_on():
    truth = directions(5)
    x, held = codes(2048, 6) @ truth, codes(1024, 7) @ truth
    source = ArraySource({"s": x}, batch=256, steps=200, seed=8)
    settings = TraineeSettings(
        penalties=(Penalty(form=L1(), weight=2.0),), lr=5e-3, dead=DeadLatents(auxk=None)
    )
    dictionary = Dictionary(autoencoder("s", D, N, ReLU()))
    train([Trainee({"d": dictionary}, settings, steps=200, batch=256, seed=9)], source)
    before = suppression(dictionary, batch(held))
    assert before.gamma < 0.9
    assert before.typical < 0.9
    tuned = finetune(dictionary, source, FinetuneSettings(lr=5e-3))
    after = suppression(tuned, batch(held))
    assert after.gamma == pytest.approx(1, abs=0.03)
    assert mse(tuned, held) < 0.8 * mse(dictionary, held)


def test_pre_bias_keeps_what_fires_and_pursuits_are_refused():
    spec = autoencoder("s", D, N, ReLU(), pre_bias=True)
    dictionary = Dictionary(spec)
    dictionary.load_state_dict(overlapping().state_dict())
    x = codes(512, 10) @ directions()
    tuned = finetune(dictionary, ArraySource({"s": x}, batch=512, steps=20))
    assert torch.equal(tuned.encode(x).dense(), dictionary.encode(x).dense())
    assert torch.equal(tuned.b_dec, dictionary.b_dec)
    pursuit = autoencoder("s", D, N, TopK(k=3), encoder=Pursuit(), pre_bias=True)
    with pytest.raises(UserError, match="pursuit"):
        finetune(Dictionary(pursuit), ArraySource({"s": x}, batch=512))
