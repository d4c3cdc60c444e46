"""Activation functions against the formulas of their papers, value and gradient, by hand."""

import pytest
import torch
from torch import Tensor

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.prolu import ProLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.batches import ArraySource
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train
from unweave.validate.worlds.features import PlantedSettings, planted_world

EPS, THETA = 0.4, 0.5
Z = [-1.0, 0.29, 0.31, 0.49, 0.51, 0.69, 0.71, 2.0]
"""Around theta = 0.5 with a window of 0.3 to 0.7."""
INSIDE = [0, 0, 1, 1, 1, 1, 0, 0]
FIRES = [0, 0, 0, 0, 1, 1, 1, 1]


def jump(gradient_to: str = "threshold") -> tuple[torch.nn.Module, Tensor]:
    activation = JumpReLU(threshold=THETA, bandwidth=EPS, gradient_to=gradient_to).build(1)
    return activation.double(), torch.tensor(Z, dtype=torch.float64)[:, None].requires_grad_()


@pytest.mark.parametrize("gradient_to", ["threshold", "all"])
def test_jumprelu_and_its_pseudo_gradients_by_hand(gradient_to):
    activation, z = jump(gradient_to)
    g = torch.arange(1.0, 9.0, dtype=torch.float64)[:, None]
    f = activation(z)
    inside, fires = (torch.tensor(m, dtype=torch.float64)[:, None] for m in (INSIDE, FIRES))
    torch.testing.assert_close(f, z * fires)
    to_z, to_log = torch.autograd.grad((g * f).sum(), [z, activation.log_threshold])
    # df/dtheta = -(theta / eps) K, and dtheta/dlog theta = theta.
    torch.testing.assert_close(to_log, -(THETA / EPS) * (g * inside).sum(0) * THETA)
    beside = (THETA / EPS) * inside if gradient_to == "all" else 0.0
    torch.testing.assert_close(to_z, g * (fires + beside))


@pytest.mark.parametrize("gradient_to", ["threshold", "all"])
def test_the_count_and_its_pseudo_gradients_by_hand(gradient_to):
    activation, z = jump(gradient_to)
    g = torch.arange(1.0, 9.0, dtype=torch.float64)[:, None]
    count = activation.count(z)
    inside = torch.tensor(INSIDE, dtype=torch.float64)[:, None]
    assert count[:, 0].tolist() == FIRES
    to_z, to_log = torch.autograd.grad(
        (g * count).sum(), [z, activation.log_threshold], allow_unused=True
    )
    torch.testing.assert_close(to_log, -(1 / EPS) * (g * inside).sum(0) * THETA)
    if gradient_to == "threshold":
        assert to_z is None
    else:
        torch.testing.assert_close(to_z, g * inside / EPS)


def test_the_pseudo_gradient_of_a_count_is_the_slope_of_the_smoothed_one():
    """With z dense around theta, -(1/eps) K is minus the density of z at theta."""
    activation = JumpReLU(threshold=THETA, bandwidth=0.2).build(1).double()
    z = torch.linspace(-2, 2, 400_001, dtype=torch.float64)[:, None]
    (told,) = torch.autograd.grad(activation.count(z).mean(), [activation.log_threshold])
    assert told.item() == pytest.approx(-THETA / 4, rel=1e-3)  # density 1/4, times dtheta/dlog


def test_gated_says_whether_by_one_path_and_how_strongly_by_the_other():
    activation = Gated().build(3).double()
    with torch.no_grad():
        activation.r_mag.copy_(torch.tensor([0.0, 0.5, -0.5]))
        activation.b_mag.copy_(torch.tensor([0.1, -0.2, 3.0]))
    b_enc = torch.tensor([-1.0, 0.3, 0.0], dtype=torch.float64, requires_grad=True)
    wx = torch.tensor([[1.5, 1.0, -2.0], [0.5, -0.1, 1.0], [2.0, 0.1, 2.0]], dtype=torch.float64)
    wx.requires_grad_()
    f = activation(wx + b_enc, b_enc)
    scale = activation.r_mag.detach().exp()
    wanted = torch.relu(scale * wx + activation.b_mag) * (wx + b_enc > 0)
    torch.testing.assert_close(f, wanted)
    to_wx, to_r, to_b, to_gate = torch.autograd.grad(
        f.sum(), [wx, activation.r_mag, activation.b_mag, b_enc]
    )
    on = (wanted > 0).double()
    torch.testing.assert_close(to_wx, on * scale)
    torch.testing.assert_close(to_r, (on * scale * wx).sum(0))
    torch.testing.assert_close(to_b, on.sum(0))
    assert to_gate.abs().max() == 0, "the reconstruction must not train the gate"


def test_prolu_is_not_shrunk_by_its_bias_and_trains_it_all_the_same():
    activation = ProLU().build(1)
    m = torch.tensor([[3.0], [1.0], [-0.5], [0.2]], dtype=torch.float64, requires_grad=True)
    for bias in (-2.0, 0.5):
        b = torch.tensor([bias], dtype=torch.float64, requires_grad=True)
        f = activation(m + b, b)
        fires = ((m + b > 0) & (m > 0)).double()
        torch.testing.assert_close(f, m * fires)
        to_m, to_b = torch.autograd.grad(f.sum(), [m, b])
        torch.testing.assert_close(to_m, fires)
        torch.testing.assert_close(to_b, fires.sum(0))


def codes(activation, pre: Tensor) -> Tensor:
    """Codes of a dictionary whose pre-activations are its input."""
    dictionary = Dictionary(autoencoder("s", pre.shape[1], pre.shape[1], activation)).double()
    with torch.no_grad():
        dictionary.encoder.W_enc.copy_(torch.eye(pre.shape[1]))
    return dictionary.encode(pre).dense()


def test_abstopk_keeps_signs_where_topk_keeps_the_largest():
    pre = torch.tensor([[0.5, -3.0, 1.0, -0.1], [-1.0, -2.0, -0.5, -4.0]], dtype=torch.float64)
    assert codes(AbsTopK(k=2), pre).tolist() == [[0, -3, 1, 0], [0, -2, 0, -4]]
    assert codes(TopK(k=2), pre).tolist() == [[0.5, 0, 1, 0], [0, 0, 0, 0]]


@pytest.fixture(scope="module")
def world():
    settings = PlantedSettings(d=24, n_features=64, mean_active=4.0)
    return planted_world(settings, seed=11)


def trained(world, activation, *, steps: int = 250) -> Dictionary:
    x, _ = world.draw(8192, seed=1)
    source = ArraySource({"s": x}, batch=256, steps=steps, seed=3)
    dictionary = Dictionary(autoencoder("s", 24, 96, activation))
    trainee = Trainee(
        {"d": dictionary}, TraineeSettings(lr=4e-3), steps=source.steps, batch=256, seed=5
    )
    train([trainee], source)
    return dictionary


def test_the_batchtopk_threshold_keeps_the_mean_l0_near_k(world):
    dictionary = trained(world, BatchTopK(k=5))
    held, _ = world.draw(4096, seed=2)
    assert dictionary.encode(held).l0() == pytest.approx(5, rel=0.08)
    # A code must not depend on who else is in the batch.
    alone = torch.cat([dictionary.encode(row[None]).dense() for row in held[:20]])
    torch.testing.assert_close(alone, dictionary.encode(held).dense()[:20])
    # Control: a threshold that was not learned leaves another number of latents.
    dictionary.activation.threshold.zero_()
    assert dictionary.encode(held).l0() > 8


def test_batchtopk_spends_its_latents_where_they_are_needed(world):
    dictionary = trained(world, BatchTopK(k=5))
    held, truth = world.draw(4096, seed=2)
    found = dictionary.encode(held).support.offsets.diff().double()
    needed = truth.support.offsets.diff().double()
    together = torch.corrcoef(torch.stack([found, needed]))[0, 1].item()
    shuffled = torch.corrcoef(torch.stack([found, needed.flip(0)]))[0, 1].item()
    assert together > 0.5
    assert abs(shuffled) < 0.1
