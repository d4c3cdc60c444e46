"""A skip transcoder: the linear part goes through the skip, and latents are spent on the rest."""

import pytest
import torch
from torch.nn.functional import normalize

from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port
from unweave.dictionaries.initial import Start, ridge_map
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.objectives.local import Local
from unweave.training.objectives.loss import State
from unweave.training.penalties.weighted import Steering
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train

IN, OUT, TRUE, ACTIVE, LATENTS = 12, 10, 16, 2, 24
NONE = Steering(())


def world(rows, seed):
    """y = A x + b + a sparse part that only thresholds of x can tell."""
    fixed, data = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    A = torch.randn(OUT, IN, generator=fixed)
    read = normalize(torch.randn(TRUE, IN, generator=fixed), dim=1)
    write = normalize(torch.randn(TRUE, OUT, generator=fixed), dim=1)
    b = torch.randn(OUT, generator=fixed)
    x = torch.randn(rows, IN, generator=data)
    sparse = 3 * torch.relu(x @ read.T - 1.5) @ write
    return A, x, x @ A.T + b, x @ A.T + b + sparse


A, X, LINEAR, Y = world(8000, 1)
_, HELD_X, HELD_LINEAR, HELD_Y = world(2000, 2)


def transcoder(skip):
    return Dictionary(
        DictionarySpec(
            reads=(Port(site="x", width=IN),), writes=(Port(site="y", width=OUT),),
            n_latents=LATENTS, activation=TopK(k=ACTIVE), skip=skip,
        )
    )  # fmt: skip


def fit(y, *, skip=True, steps=300, start=None):
    dictionary = transcoder(skip)
    settings = TraineeSettings(lr=1e-2, start=start or Start())
    trainee = Trainee({"d": dictionary}, settings, steps=steps, batch=128, seed=5)
    train([trainee], ArraySource({"x": X, "y": y}, batch=128, steps=steps, seed=3))
    return dictionary


def fvu(dictionary, y):
    error = (dictionary(HELD_X) - y).square().sum()
    return (error / (y - y.mean(0)).square().sum()).item()


def slope(dictionary):
    """The skip in raw units."""
    return dictionary.W_skip * dictionary.input_scale / dictionary.output_scale[:, None]


@pytest.fixture(scope="module")
def linear():
    return fit(LINEAR)


def test_a_linear_map_goes_through_the_skip(linear):
    assert fvu(linear, HELD_LINEAR) < 0.02
    # Latents take a part of it: nothing tells them to leave a linear map to the skip.
    assert ((slope(linear) - A).norm() / A.norm()).item() < 0.4


def test_latents_alone_cannot_do_it():
    assert fvu(fit(LINEAR, skip=False, steps=150), HELD_LINEAR) > 0.2


def test_the_skip_leaves_the_number_of_latents_alone(linear):
    code = linear.encode(HELD_X)
    assert (code.support.offsets.diff() == ACTIVE).all()
    assert linear.W_skip.norm() > 1


def test_ridge_starts_at_the_linear_part():
    dictionary = transcoder(True)
    settings = TraineeSettings(start=Start(skip="ridge", decoder="data"))
    trainee = Trainee({"d": dictionary}, settings, steps=1, batch=8000)
    trainee.begin(VectorBatch({"x": X, "y": LINEAR}))
    assert ((slope(dictionary) - A).norm() / A.norm()).item() < 0.02
    with torch.no_grad():
        dictionary.W_dec.zero_()
    assert fvu(dictionary, HELD_LINEAR) < 1e-3


def test_ridge_is_the_best_linear_map_of_data_that_is_not_linear():
    found = ridge_map(X, Y, ridge=1e-6)
    best = torch.linalg.lstsq(X - X.mean(0), Y - Y.mean(0)).solution.T
    torch.testing.assert_close(found, best, rtol=1e-3, atol=1e-3)
    assert ((found - A).norm() / A.norm()).item() > 0.05


def test_a_short_run_gains_by_starting_at_the_ridge():
    short = [fvu(fit(Y, steps=40, start=Start(skip=skip)), HELD_Y) for skip in ("ridge", "zero")]
    assert short[0] < 0.7 * short[1], short


def test_without_a_skip_nothing_changes():
    starts = []
    for skip in ("zero", "ridge"):
        dictionary = transcoder(False)
        trainee = Trainee(
            {"d": dictionary}, TraineeSettings(start=Start(skip=skip)), steps=1, batch=100
        )
        trainee.begin(VectorBatch({"x": X[:100], "y": Y[:100]}))
        starts.append(dictionary.state_dict())
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def gate_gradient(*, skip):
    """What the gate's own reconstruction teaches `W_enc` where the skip already knows y."""
    spec = DictionarySpec(
        reads=(Port(site="x", width=IN),), writes=(Port(site="y", width=OUT),),
        n_latents=LATENTS, activation=Gated(), skip=True,
    )  # fmt: skip
    dictionary = Dictionary(spec)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.randn(LATENTS, IN, generator=generator))
        dictionary.W_dec.copy_(normalize(torch.randn(LATENTS, OUT, generator=generator), dim=1))
        dictionary.activation.b_mag.fill_(-100.0)  # latents write nothing, the gate is open
        dictionary.b_dec.copy_(LINEAR.mean(0) - A @ X.mean(0))
        dictionary.W_skip.copy_(A)
    x = X[:200]
    pre = torch.relu(dictionary.encoder.dense(x)).detach()
    y = x @ A.T + dictionary.b_dec.detach() + (pre @ dictionary.W_dec.detach() if skip else 0)
    state = State(0, 0.0, {"d": torch.zeros(LATENTS, dtype=torch.bool)})
    loss = Local().loss({"d": dictionary}, VectorBatch({"x": x, "y": y}), state, {"d": NONE}, None)
    loss.total.backward()
    return dictionary


def test_the_gate_of_a_skip_transcoder_learns_from_what_the_skip_leaves_over():
    """With y = skip + the gate's reconstruction there is nothing left for the gate to learn."""
    settled = gate_gradient(skip=True).W_enc.grad.norm()
    control = gate_gradient(skip=False)
    assert settled < 1e-4 * control.W_enc.grad.norm()
    # With latents silent and y all skip, whatever reached W_skip would have come by the gate.
    assert control.W_skip.grad.norm() < 1e-3
