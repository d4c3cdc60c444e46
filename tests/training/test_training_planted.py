"""A dictionary that we planted is found again; controls that must fail do."""

import pytest
import torch

from unweave.dictionaries.part import Part
from unweave.dictionaries.spec import PartSpec
from unweave.training.local import LocalSettings, LocalTrainer

TRUE, WIDTH, ACTIVE, LATENTS = 64, 32, 3, 128
BAR, MEAN_BAR = 0.9, 0.98
"""Share of true features matched with cosine above 0.9, and the mean best cosine (MMCS)."""
STEPS, BATCH = 400, 256
SETTINGS = LocalSettings(batch=BATCH, lr=5e-3)


def directions(count, width, seed):
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return drawn / drawn.norm(dim=1, keepdim=True)


def coefficients(count, seed):
    """Three features at a time, with strengths from 0.5 to 1.5."""
    g = torch.Generator().manual_seed(seed)
    on = torch.rand(count, TRUE, generator=g).topk(ACTIVE, dim=1).indices
    return torch.zeros(count, TRUE).scatter(1, on, 0.5 + torch.rand(count, ACTIVE, generator=g))


def fresh_part(d_in, d_out, seed) -> Part:
    spec = PartSpec(
        name="L0.mlp", input_site="here", output_site="there", d_in=d_in, d_out=d_out,
        n_latents=LATENTS, k=ACTIVE, input_scale=5.0, output_scale=5.0,
    )  # fmt: skip
    part = Part(spec)
    with torch.no_grad():
        part.W_enc.copy_(directions(LATENTS, d_in, seed))
        part.W_dec.copy_(directions(LATENTS, d_out, seed + 1))
    return part


def train(part, x, y, *, settings=SETTINGS, steps=STEPS):
    trainer = LocalTrainer(part, steps, seed=0, settings=settings)
    g = torch.Generator().manual_seed(77)
    reports = []
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=g)
        reports.append(trainer.step(x[batch], y[batch]))
    return trainer, reports


def found(part, truth):
    """Share of true features with a decoder row at cosine > 0.9, and the mean best cosine."""
    best = (truth @ part.W_dec.detach().T).max(dim=1).values
    return (best > 0.9).float().mean().item(), best.mean().item()


@pytest.fixture(scope="module")
def autoencoder():
    truth = directions(TRUE, WIDTH, seed=1)
    x = coefficients(8_000, seed=2) @ truth
    part = fresh_part(WIDTH, WIDTH, seed=3)
    with torch.no_grad():
        part.W_enc.copy_(part.W_dec)
    untrained = found(part, truth)
    _, reports = train(part, x, x)
    return part, truth, untrained, reports


def test_planted_features_are_found(autoencoder):
    part, truth, untrained, reports = autoencoder
    share, mean = found(part, truth)
    assert share >= BAR
    assert mean >= MEAN_BAR
    assert untrained[0] < 0.05
    assert untrained[1] < 0.7
    assert reports[-1].loss < 0.15 < 0.5 < reports[0].loss


def test_they_are_found_in_data_never_seen(autoencoder):
    part, truth, _, _ = autoencoder
    x = coefficients(3000, seed=99) @ truth
    with torch.no_grad():
        fvu = (part(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.15


def test_no_more_than_k_latents_are_active_and_decoders_are_unit(autoencoder):
    part, truth, _, _ = autoencoder
    code = part.encode(coefficients(3000, seed=99) @ truth)
    assert code.latent.shape == (3000, ACTIVE)
    assert (code.latent.sort(dim=1).values.diff(dim=1) > 0).all()
    assert (code.value > 0).float().mean() > 0.9
    torch.testing.assert_close(part.W_dec.norm(dim=1), torch.ones(LATENTS))


def test_nothing_is_found_in_shuffled_data():
    """Each coordinate permuted among the vectors: same marginals, no features."""
    truth = directions(TRUE, WIDTH, seed=1)
    x = coefficients(8_000, seed=2) @ truth
    g = torch.Generator().manual_seed(0)
    shuffled = torch.stack([column[torch.randperm(len(x), generator=g)] for column in x.T], dim=1)
    part = fresh_part(WIDTH, WIDTH, seed=3)
    train(part, shuffled, shuffled, steps=200)
    assert found(part, truth)[0] < 0.1


def test_a_transcoder_finds_what_is_written_from_what_is_read():
    read, written = directions(TRUE, WIDTH, seed=11), directions(TRUE, 24, seed=12)
    code = coefficients(8_000, seed=13)
    part = fresh_part(WIDTH, 24, seed=14)
    train(part, code @ read, code @ written)
    share, mean = found(part, written)
    assert share >= 0.8
    assert mean >= 0.9


def planted_with_the_dead(settings):
    """Three quarters of the latents cannot fire; the 32 that can are too few for 64 features."""
    truth = directions(TRUE, WIDTH, seed=1)
    x = coefficients(8_000, seed=2) @ truth
    part = fresh_part(WIDTH, WIDTH, seed=3)
    with torch.no_grad():
        part.W_enc.copy_(part.W_dec)
        part.b_enc[32:] = -1e4
    trainer, reports = train(part, x, x, settings=settings)
    code = part.encode(x)
    alive = torch.zeros(LATENTS, dtype=torch.bool)
    alive[code.latent[code.value > 0]] = True
    return trainer, reports, alive, found(part, truth)[0]


def test_dead_latents_are_revived_and_used():
    _, reports, alive, share = planted_with_the_dead(SETTINGS)
    assert {i for i, r in enumerate(reports) if r.revived} <= {60, 120, 180}
    assert sum(r.revived for r in reports) >= 96
    assert alive[32:].float().mean() > 0.4
    assert share >= BAR
    _, none, dead, without = planted_with_the_dead(SETTINGS.model_copy(update={"revive_at": ()}))
    assert sum(r.revived for r in none) == 0
    assert not dead[32:].any()
    assert share > without + 0.3


def test_revived_latents_of_heads_read_their_own_head():
    spec = PartSpec(
        name="L0.attn", input_site="a", output_site="b", d_in=16, d_out=8, n_latents=32, k=4,
        heads=4,
    )  # fmt: skip
    part = Part(spec)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.W_dec.copy_(directions(32, 8, seed=1))
        part.b_enc.fill_(-1e4)
    x = torch.randn(64, 16, generator=g)
    trainer = LocalTrainer(part, 4, seed=0, settings=LocalSettings(batch=64, revive_at=(0.25,)))
    y = torch.randn(64, 8, generator=g)
    revived = [trainer.step(x, y).revived for _ in range(2)]
    assert revived == [0, 32]
    centred = (x - x.mean(0)).view(64, 4, 4)
    for latent in range(32):
        heads = torch.nn.functional.cosine_similarity(
            centred, part.W_enc[latent].expand(64, 4, 4), dim=-1
        )
        assert heads[:, latent // 8].max() > 0.98


def test_a_step_is_adam_on_the_hubers_gradient(monkeypatch):
    """Against float64 autograd through a dense layer; a few enormous targets among the rows."""
    monkeypatch.setattr("unweave.training.local.product_dtype", lambda: torch.float32)
    truth = directions(TRUE, WIDTH, seed=1)
    x = coefficients(BATCH, seed=5) @ truth
    y = x @ torch.randn(WIDTH, 24, generator=torch.Generator().manual_seed(0))
    y[:5] *= 300
    part = fresh_part(WIDTH, 24, seed=3)
    w = {n: p.detach().double().clone().requires_grad_() for n, p in part.named_parameters()}
    trainer = LocalTrainer(part, 20, seed=0, settings=LocalSettings(batch=BATCH, revive_at=()))
    adam = torch.optim.Adam(w.values(), lr=2e-3)
    for _ in range(3):
        report = trainer.step(x, y)
        pre = (5.0 * x.double()) @ w["W_enc"].T + w["b_enc"]
        keep = torch.zeros_like(pre).scatter(1, pre.topk(ACTIVE, dim=1).indices, 1.0)
        error = (pre.relu() * keep) @ w["W_dec"] + w["b_dec"] - 5.0 * y.double()
        size, limit = error.norm(dim=1), 24**0.5
        loss = torch.where(size < limit, size**2, 2 * limit * size - limit**2).mean() / limit
        target = 5.0 * y.double()
        fvu = error.square().sum() / (target - target.mean(0)).square().sum()
        assert abs(report.loss - fvu.item()) < 1e-4
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            w["W_dec"] /= w["W_dec"].norm(dim=1, keepdim=True)
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(parameter.double(), w[name], rtol=1e-3, atol=1e-4)
