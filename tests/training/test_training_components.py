"""Parameter decomposition: the stated loss, its true gradient, equal bits, and truth found."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from unweave.dictionaries.components.components import start_components
from unweave.dictionaries.components.masked import clean_run
from unweave.dictionaries.components.readouts import (
    alive_components,
    feature_shares,
    recovery,
    svd_pieces,
)
from unweave.training.checkpoint import Checkpoints
from unweave.training.components import ComponentsSettings, components_loss, learn_components
from unweave.validate.worlds.compressed import (
    CompressedSettings,
    compressed_inputs,
    train_compressed,
)
from unweave.validate.worlds.tms import TMSSettings, sparse_features, train_tms, untrained_tms

TMS = TMSSettings(steps=1500)
SETTINGS = ComponentsSettings(steps=12)


def drawing(settings, rows):
    return lambda g: sparse_features(rows, settings.features, settings.probability, generator=g)


@pytest.fixture(scope="module")
def target():
    return train_tms(TMS, seed=0)


def learn(target, settings=SETTINGS, *, rows=64, **rest):
    components = start_components(target, {"down": 8, "up": 6}, seed=1)
    metrics = learn_components(
        target, components, drawing(TMS, rows), seed=2, settings=settings, **rest
    )
    return components, metrics


class CutOff(Exception):
    """Stands for the plug being pulled."""


class CutAfter:
    """Progress that pulls the plug at the n-th report of work done."""

    def __init__(self, reports):
        self.left = reports

    @contextmanager
    def task(self, title, *, total, unit):
        def advance(amount):
            self.left -= 1
            if self.left < 0:
                raise CutOff

        yield advance

    def say(self, line):
        pass


@pytest.mark.parametrize("cut", [2, 9])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(target, tmp_path, cut):
    whole, log = learn(target)
    with pytest.raises(CutOff):
        learn(target, checkpoints=Checkpoints(tmp_path, seconds=0), progress=CutAfter(cut))
    assert Checkpoints(tmp_path).latest().done == cut - 1
    again, metrics = learn(target, checkpoints=Checkpoints(tmp_path, seconds=0))
    assert metrics == log
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_the_seed_decides_and_the_target_is_left_alone(target):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    one, log = learn(target)
    components = start_components(target, {"down": 8, "up": 6}, seed=1)
    other = learn_components(target, components, drawing(TMS, 64), seed=3, settings=SETTINGS)
    assert [line["step"] for line in log] == list(range(12))
    assert log[0]["faithfulness"] == other[0]["faithfulness"]
    assert log[0]["stochastic"] != other[0]["stochastic"]
    assert all(torch.equal(tensor, before[n]) for n, tensor in target.state_dict().items())
    assert all(parameter.grad is None for parameter in one.parameters())


def test_no_steps_leave_the_components_as_they_are(target):
    components, metrics = learn(target, SETTINGS.model_copy(update={"steps": 0}))
    start = start_components(target, {"down": 8, "up": 6}, seed=1)
    assert metrics == []
    assert all(torch.equal(t, start.state_dict()[n]) for n, t in components.state_dict().items())


def by_hand(target, components, x, generator, settings):
    """The loss of a TMS from the paper's formulas, with nothing of the package in it."""
    down, up = components.by_name()["down"], components.by_name()["up"]
    W, W_out, b = target.down.weight, target.up.weight, target.up.bias
    hidden = x @ W.T
    output = (hidden @ W_out.T + b).relu()
    raw = {}
    for part, a in ((down, x), (up, hidden)):
        h = a @ part.V.T
        inside = h[..., None] * part.gates.W_in + part.gates.b_in
        gelu = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
        raw[part] = (gelu * part.gates.W_out).sum(-1) + part.gates.b_out

    def masks():
        drawn = []
        for part in (down, up):
            g = torch.where(raw[part] > 0, raw[part].clamp(max=1), 0.01 * raw[part])
            drawn.append(g + (1 - g) * torch.rand(g.shape, generator=generator, dtype=g.dtype))
        return drawn

    def way_in(m):
        return ((x @ down.V.T) * m) @ down.U

    def way_out(a, m):
        return (((a @ up.V.T) * m) @ up.U + b).relu()

    first, second = masks()
    both = way_out(way_in(first), second)
    first, second = masks()
    alone = [(way_in(first) @ W_out.T + b).relu(), way_out(hidden, second)]
    squares = (down.U.T @ down.V - W).square().sum() + (up.U.T @ up.V - W_out).square().sum()
    penalty = sum(
        torch.where(r > 1, 1 + 0.01 * (r - 1), r.clamp(min=0)).pow(settings.importance_power)
        .sum(-1).mean()
        for r in raw.values()
    )  # fmt: skip
    return (
        settings.faithfulness_weight * squares / (W.numel() + W_out.numel())
        + settings.stochastic_weight * (both - output).square().mean()
        + settings.layerwise_weight * sum((o - output).square().mean() for o in alone) / 2
        + settings.importance_weight * penalty
    )


ODD = ComponentsSettings(
    importance_weight=0.3, importance_power=1.5, faithfulness_weight=0.7, stochastic_weight=1.3,
    layerwise_weight=0.4,
)  # fmt: skip


def in_double(target):
    import copy

    components = start_components(target, {"down": 8, "up": 6}, seed=1).double()
    with torch.no_grad():
        for matrix in components.by_name().values():
            matrix.gates.b_out.copy_(torch.linspace(-1, 2, matrix.spec.n_components))
    x = torch.rand(9, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return copy.deepcopy(target).double(), components, x


def loss_of(target, components, x):
    generator = torch.Generator().manual_seed(11)
    loss = components_loss(target, components, x, generator=generator, settings=ODD)
    return loss.total(ODD)


def test_the_loss_is_the_papers(target):
    target, components, x = in_double(target)
    want = by_hand(target, components, x, torch.Generator().manual_seed(11), ODD)
    torch.testing.assert_close(loss_of(target, components, x), want, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_finite_differences(target):
    target, components, x = in_double(target)
    loss = loss_of(target, components, x)
    gradients = torch.autograd.grad(loss, list(components.parameters()))
    names = [name for name, _ in components.named_parameters()]
    for name, parameter, gradient in zip(names, components.parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name
        flat = parameter.data.view(-1)
        for at in range(0, len(flat), max(1, len(flat) // 6)):
            kept, losses = flat[at].item(), []
            for step in (1e-6, -1e-6):
                flat[at] = kept + step
                losses.append(loss_of(target, components, x).item())
            flat[at] = kept
            slope = (losses[0] - losses[1]) / 2e-6
            assert gradient.view(-1)[at].item() == pytest.approx(slope, rel=1e-4, abs=1e-8), name


def test_kl_compares_the_softmaxes(target):
    settings = ODD.model_copy(update={"distance": "kl"})
    target, components, x = in_double(target)
    loss = components_loss(
        target, components, x, generator=torch.Generator().manual_seed(1), settings=settings
    )
    assert loss.stochastic > 0
    assert not torch.allclose(loss.stochastic, loss_of(target, components, x))


def read(target, components):
    """MMCS and ML2R of the way in, and how single features share its pieces."""
    matrix = components.by_name()["down"]
    x = sparse_features(4000, 5, 0.05, generator=torch.Generator().manual_seed(99))
    with torch.no_grad():
        found = components.importances(clean_run(target, components, x).inputs)
        single = components.importances(clean_run(target, components, 0.75 * torch.eye(5)).inputs)
    alive = alive_components(found["down"].value)
    match = recovery(matrix.U, matrix.V, target.down.weight, alive=alive)
    return match, feature_shares(single["down"].value)


def come_apart(target, probability, rows):
    """A short run on inputs of which some are not zero; without those, most steps are wasted."""

    def draw(generator):
        x = sparse_features(rows, 5, probability, generator=generator)
        return x[(x != 0).any(1)]

    components = start_components(target, {"down": 8, "up": 8}, seed=1)
    start, _ = read(target, components)
    settings = ComponentsSettings(steps=600, lr=2e-2)
    learn_components(target, components, draw, seed=2, settings=settings)
    return start, *read(target, components)


def test_a_toy_of_superposition_comes_apart_towards_its_features(target):
    """More than the start and the SVD do; inputs without sparsity leave the pieces shared.

    In two dimensions the directions alone (MMCS) tell little, so the control is held to how many
    features a piece serves.
    """
    start, match, shares = come_apart(target, 0.05, 128)
    svd = recovery(*svd_pieces(target.down.weight), target.down.weight)
    assert match.mmcs > svd.mmcs + 0.02
    assert match.mmcs > start.mmcs + 0.03
    assert start.ml2r < 0.2
    assert match.ml2r > 0.5
    _, _, control = come_apart(target, 1.0, 32)
    assert control.owned == 0
    assert shares.mean_features < control.mean_features - 0.75


def test_the_targets_learn_their_tasks_and_untrained_ones_do_not(target):
    x = sparse_features(2000, 5, 0.05, generator=torch.Generator().manual_seed(5))
    lost = [(m(x) - x).square().mean() for m in (target, untrained_tms(TMS, seed=0))]
    assert lost[0] < 0.3 * lost[1]
    norms = target.down.weight.norm(dim=0)
    assert norms.min() > 0.9

    small = CompressedSettings(features=20, width=100, neurons=10, probability=0.05, steps=400)
    model = train_compressed(small, seed=0)
    inputs = compressed_inputs(small, 2000, generator=torch.Generator().manual_seed(6))
    want = inputs + inputs.relu()
    untrained = train_compressed(small.model_copy(update={"steps": 1, "lr": 1e-9}), seed=0)
    fit, none = [(m(inputs) - want).square().mean() for m in (model, untrained)]
    assert fit < 0.5 * none
    assert inputs.min() < -0.9
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(model, nn.Module)
