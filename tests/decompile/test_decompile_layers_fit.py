"""Training of layers of features: what is known is found, runs resume, and chance finds nothing."""

import copy

import pytest
import torch
from test_decompile_layers import lossless
from tiny_subject import START, tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.decompile.gaps import feature_gap
from unweave.decompile.layers.autoencoders import AutoencoderSettings, train_autoencoders
from unweave.decompile.layers.block import build_block
from unweave.decompile.layers.codes import activate, with_constants
from unweave.decompile.layers.fit import InteractionSettings, fit_interactions, truth_of
from unweave.decompile.layers.spec import BlockSpec
from unweave.decompile.layers.start import start_network
from unweave.pipeline.fitting import part_specs
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts
from unweave.training.local import LocalSettings

N, K = 24, 4
SPEC = BlockSpec(form="matrix", n_in=N, n_out=N, k_out=K, heads=1, skip=False)


def sparse_code(seed, batch=16, pos=16):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.rand(batch, pos, N, generator=generator)
    return with_constants(latents * (torch.rand(latents.shape, generator=generator) < 0.15))


def planted(seed=0):
    """A sparse signed matrix, a seventh of its entries not zero."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randn(N, N, generator=generator)
    return signs * (torch.rand(N, N, generator=generator) < 1 / 7)


def recovered(*, shuffled):
    """Cosine of a block's matrix with the one that made what it was trained on."""
    wanted, where = planted(), torch.eye(16).expand(16, 1, 16, 16)
    block = build_block(SPEC, 1e-5)
    with torch.no_grad():
        block.gram[-2, -2] = 1.0  # so that every scale is one
    optimizer = torch.optim.Adam(block.parameters(), lr=0.02)
    for step in range(300):
        features = sparse_code(step)
        true = activate(features[..., :N] @ wanted, K)
        if shuffled:
            true = true[torch.randperm(16, generator=torch.Generator().manual_seed(step))]
        pre = block(features, torch.zeros_like(where)).pre
        loss = feature_gap(pre, activate(pre, K), true)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = block.W_in_place.detach()[:N]
    return torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0).item()


def test_a_planted_matrix_between_layers_is_recovered_and_not_from_shuffled_targets():
    assert recovered(shuffled=False) > 0.9
    assert abs(recovered(shuffled=True)) < 0.5


def test_the_gap_holds_up_what_should_be_on_and_down_what_should_not():
    true = torch.tensor([[[0.0, 0, 0, 0, 1], [2.0, 0, 0, 1, 0]]])
    pre = torch.tensor([[[9.0, 9, 9], [-1.0, 1, 0]]], requires_grad=True)
    gap = feature_gap(pre, activate(pre, 1), true)
    assert gap.item() == pytest.approx((9 + 1) / 4)
    (grad,) = torch.autograd.grad(gap, pre)
    assert grad[0, 1].tolist() == pytest.approx([-1.5, 0.5, 0.0])


@pytest.fixture(scope="module")
def subject():
    return tiny_llama()


@pytest.fixture(scope="module")
def made(subject):
    """Autoencoders, and a network of layers started from parts."""
    rows = tiny_rows(40, 16, seed=2)
    specs = part_specs(subject, latents=2, k_mlp=6, k_attention=6, k_query=6, k_key=6, skip=False)
    few = AutoencoderSettings(
        latents=2, k=12, local_tokens=40 * 16, batch=60, tokens=16 * 16, rows=4
    )
    with Workers(1) as workers:
        dictionaries = train_autoencoders(subject, rows, workers=workers, seed=0, settings=few)
        parts, _ = fit_parts(
            subject, specs, rows, workers=workers, seed=0, settings=LocalSettings(batch=200)
        )
    return dictionaries, start_network(subject, dictionaries, parts)


SETTINGS = InteractionSettings(tokens=16 * 64, rows=4, lr=3e-3)


def fitted(subject, made, *, settings=SETTINGS, **rest):
    dictionaries, network = made[0], copy.deepcopy(made[1])
    rows = tiny_rows(40, 16, seed=2)
    log = fit_interactions(network, subject, dictionaries, rows, seed=3, settings=settings, **rest)
    return network, log


def test_training_lowers_what_it_is_trained_on(subject, made):
    network, log = fitted(subject, made)
    assert len(log) == 16
    rows = tiny_rows(8, 16, seed=9)
    truth = truth_of(subject, made[0], rows)

    def kl(layers):
        with torch.no_grad():
            q, p = layers(rows).logits.log_softmax(-1), truth.logits.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)[:, 1:].mean().item()

    assert kl(network) < 0.9 * kl(made[1])


def test_true_features_are_those_of_the_stream_and_nothing_but_the_constant_at_the_start(subject):
    rows = tiny_rows(2, 8)
    truth = truth_of(subject, lossless(subject), rows)
    assert bool((rows[:, 0] == START).all())
    for features in truth.features:
        assert features[:, 0, :-1].count_nonzero() == 0
        assert bool((features[:, 0, -1] == 1).all())
        assert bool((features[:, 1:, -2] == 1).all())


def test_a_cut_run_ends_in_the_same_bits(subject, made, tmp_path):
    whole, _ = fitted(subject, made)

    class Cut(Checkpoints):
        def offer(self, done, metrics, state):
            super().offer(done, metrics, state)
            if done == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(subject, made, checkpoints=Cut(tmp_path, seconds=0.0))
    again, _ = fitted(subject, made, checkpoints=Checkpoints(tmp_path, seconds=0.0))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
