"""Penalties: values and gradients by hand, what L1 costs, and weights that find their L0."""

import math

import pytest
import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.errors import UserError
from unweave.training.batches import ArraySource
from unweave.training.dead import DeadLatents
from unweave.training.penalties.hoyer import Hoyer
from unweave.training.penalties.l0 import L0, PreActivation
from unweave.training.penalties.pointwise import L1, Log, Lp, Sqrt, Tanh
from unweave.training.penalties.strengths import Strengths, strengths
from unweave.training.penalties.weighted import Penalty, Steering
from unweave.training.schedule import Schedule
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import train
from unweave.validate.worlds.features import PlantedSettings, planted_world

U = torch.tensor([[0.0, 1.0, 0.25], [0.0, 0.0, 0.0], [2.0, 0.0, 0.5]], dtype=torch.float64)
ENTRIES = [1.0, 0.25, 2.0, 0.5]


def at(u: torch.Tensor, *, sparse: bool = False) -> Strengths:
    lengths = torch.ones(u.shape[1], dtype=u.dtype)
    if not sparse:
        return Strengths(u, None, len(u), u.shape[1], None, lengths)
    row, latent = (u != 0).nonzero(as_tuple=True)
    return Strengths(u[row, latent], row, len(u), u.shape[1], None, lengths)


def by_hand(form) -> float:
    root = math.sqrt(3)
    hoyer = [(1.25 / math.sqrt(1.0625) - 1), (2.5 / math.sqrt(4.25) - 1)]
    return {
        "l1": lambda: sum(ENTRIES),
        "lp": lambda: sum((u + 0.01) ** 0.4 - 0.01**0.4 for u in ENTRIES),
        "sqrt": lambda: sum(math.sqrt(u + 1e-4) - 0.01 for u in ENTRIES),
        "tanh": lambda: sum(math.tanh(4 * u) for u in ENTRIES),
        "log": lambda: sum(math.log(1 + u / 0.1) for u in ENTRIES),
        "hoyer": lambda: sum(hoyer) / (root - 1),
    }[form.kind]() / 3


FORMS = pytest.mark.parametrize(
    "form", [L1(), Lp(p=0.4, eps=0.01), Sqrt(), Tanh(), Log(), Hoyer()], ids=lambda form: form.kind
)


@FORMS
@pytest.mark.parametrize("sparse", [False, True])
def test_values_by_hand(form, sparse):
    assert form.of(at(U, sparse=sparse), 0.5).item() == pytest.approx(by_hand(form), rel=1e-12)
    assert form.of(at(torch.zeros_like(U), sparse=sparse), 0.5).item() == 0


@FORMS
def test_gradients_are_slopes_and_finite_at_zero(form):
    u = (U + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: form.of(at(u), 1.0), (u,))
    zeros = torch.zeros_like(U, requires_grad=True)
    form.of(at(zeros), 1.0).backward()
    assert zeros.grad.isfinite().all()


def test_hoyer_is_blind_to_size_and_knows_one_from_many():
    form = Hoyer()
    assert form.of(at(7 * U), 0.5).item() == pytest.approx(form.of(at(U), 0.5).item())
    one, all_alike = torch.eye(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
    assert form.of(at(one), 0.5).item() == pytest.approx(0)
    assert form.of(at(all_alike), 0.5).item() == pytest.approx(1)


def test_the_flatter_a_penalty_the_less_it_charges_what_is_strong():
    """Slope at a strong activation relative to that at a weak one."""

    def relative(form) -> float:
        u = torch.tensor([[0.05, 3.0]], dtype=torch.float64, requires_grad=True)
        form.of(at(u), 1.0).backward()
        weak, strong = u.grad[0].tolist()
        return strong / weak

    assert relative(L1()) == pytest.approx(1)
    assert relative(Tanh()) < relative(Log()) < 0.2
    assert relative(Lp(p=0.2)) < relative(Sqrt()) < 0.2


@pytest.mark.parametrize("anneal_from", [0.0, 0.4])
def test_annealing_p_changes_the_shape_and_not_the_weight(anneal_from):
    form = Lp(p=0.2, anneal_from=anneal_from)
    totals = [form.of(at(U + 0.1), done / 50).item() for done in range(51)]
    assert totals == pytest.approx([totals[0]] * 51, rel=1e-9)
    assert totals[0] == pytest.approx((U + 0.1).sum().item() / 3, rel=1e-6), "p is 1 at first"

    def slopes(done: float) -> torch.Tensor:
        u = (U + 0.1).requires_grad_()
        form.of(at(u), done).backward()
        return u.grad

    jumps = [(slopes((d + 1) / 200) - slopes(d / 200)).abs().max().item() for d in range(200)]
    assert max(jumps) < 0.1 * slopes(0).max(), "no step along the way"
    assert slopes(1)[0, 0] > 2 * slopes(1)[2, 0], "at the end the weak are charged more"
    torch.testing.assert_close(slopes(anneal_from), slopes(0))


def filled(activation, **changes) -> Dictionary:
    dictionary = Dictionary(autoencoder("s", 5, 9, activation, **changes)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if name != "activation.log_threshold":
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return dictionary


def inputs() -> torch.Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("activation", [ReLU(), TopK(k=3), BatchTopK(k=3), AbsTopK(k=3)])
def test_strengths_are_activations_times_decoder_lengths(activation):
    dictionary = filled(activation, decoder="free")
    passed = dictionary.run(inputs())
    dense = passed.sparse_code.dense().abs()
    wanted = (dense * dictionary.W_dec.norm(dim=1)).sum(1)
    found = strengths(dictionary, passed)
    torch.testing.assert_close(found.per_row(found.u), wanted)
    unit = filled(activation, decoder="normalised")
    assert unit.lengths().eq(1).all()


def test_of_a_gated_latent_the_gate_is_charged():
    dictionary = filled(Gated())
    passed = dictionary.run(inputs())
    x = inputs()
    gate = torch.relu(x @ dictionary.W_enc.T + dictionary.b_enc)
    torch.testing.assert_close(strengths(dictionary, passed).u, gate)


def test_counting_sees_pre_activations_and_moves_thresholds():
    activation = JumpReLU(threshold=0.5, bandwidth=2.0)
    dictionary = filled(activation)
    passed = dictionary.run(inputs())
    assert passed.pre is not None
    bill = L0().of_jump(strengths(dictionary, passed), dictionary.activation)
    assert bill.item() == pytest.approx((passed.pre > 0.5).sum().item() / 20)
    (gradient,) = torch.autograd.grad(bill, [dictionary.activation.log_threshold])
    inside = ((passed.pre - 0.5).abs() < 1).sum(0).double() / 20
    torch.testing.assert_close(gradient, -(1 / 2.0) * inside * 0.5)
    aimed = L0(target=4.0).of_jump(strengths(dictionary, passed), dictionary.activation)
    assert aimed.item() == pytest.approx((bill.item() / 4 - 1) ** 2)


def test_silent_latents_are_pulled_towards_their_thresholds():
    dictionary = filled(JumpReLU(threshold=0.5), decoder="free")
    passed = dictionary.run(inputs())
    bill = PreActivation().of_jump(strengths(dictionary, passed), dictionary.activation)
    lengths = dictionary.W_dec.norm(dim=1)
    assert passed.pre is not None
    assert bill.item() == pytest.approx((torch.relu(0.5 - passed.pre) * lengths).sum().item() / 20)


@pytest.mark.parametrize("form", [L0(), PreActivation()])
def test_thresholds_are_asked_of_those_who_have_them(form):
    penalty = Penalty(form=form, weight=1.0)
    dictionary = filled(ReLU())
    with pytest.raises(UserError, match=f"{form.kind} penalty needs a jumprelu"):
        Steering((penalty,)).charge(dictionary, dictionary.run(inputs()), 0.5)


def test_weights_ramp_up_and_add_up():
    penalties = (Penalty(form=L1(), weight=2.0, warmup=0.4), Penalty(form=Tanh(), weight=3.0))
    dictionary = filled(ReLU(), decoder="free")
    passed, steering = dictionary.run(inputs()), Steering(penalties)
    u = strengths(dictionary, passed)
    for done, ramps in ((0.0, (0, 0)), (0.025, (0.0625, 0.5)), (0.2, (0.5, 1)), (1.0, (1, 1))):
        charged = steering.charge(dictionary, passed, done)
        weights = 2 * ramps[0], 3 * ramps[1]
        wanted = weights[0] * L1().of(u, done) + weights[1] * Tanh().of(u, done)
        assert charged.total.item() == pytest.approx(wanted.item())
        assert charged.weight == pytest.approx(sum(weights))
    assert steering.log_factor.eq(0).all()


def test_l1_shrinks_a_lone_feature_by_half_its_weight():
    """min (a - g)^2 + c a has a = g - c / 2 (methods: Wright & Sharkey's 1 - c/2 at d = 1)."""
    g, c = 1.0, 0.6
    for penalties, wanted in (((Penalty(form=L1(), weight=c, warmup=0),), g - c / 2), ((), g)):
        dictionary = Dictionary(autoencoder("s", 1, 1, ReLU()))
        x = torch.full((64, 1), g)
        settings = TraineeSettings(
            penalties=penalties, scale=False, lr=0.05, start=None, schedule=Schedule(warmup=0)
        )
        with torch.no_grad():
            dictionary.W_dec.fill_(1)
            dictionary.encoder.W_enc.fill_(1)
            dictionary.b_dec.requires_grad_(False)
        source = ArraySource({"s": x}, batch=64, steps=150)
        train([Trainee({"d": dictionary}, settings, steps=150, batch=64)], source)
        assert dictionary(x)[0].item() == pytest.approx(wanted, abs=0.01)


@pytest.fixture(scope="module")
def planted():
    settings = PlantedSettings(d=16, n_features=40, mean_active=4, noise_share=0.01)
    return planted_world(settings, seed=5).draw(4096, seed=6)[0]


def l0_after(planted, activation, penalty: Penalty, *, steps: int = 300, lr: float = 3e-3) -> float:
    source = ArraySource({"s": planted[:3072]}, batch=256, steps=steps, seed=1)
    dictionary = Dictionary(autoencoder("s", 16, 64, activation, decoder="free"))
    settings = TraineeSettings(penalties=(penalty,), lr=lr, dead=DeadLatents(auxk=None))
    train([Trainee({"d": dictionary}, settings, steps=steps, batch=256, seed=3)], source)
    return dictionary.encode(planted[3072:]).l0()


@pytest.mark.parametrize("first_guess", [0.3, 2.0])
def test_a_steered_weight_finds_the_l0_that_was_asked_for(planted, first_guess):
    steered = Penalty(form=L1(), weight=first_guess, target_l0=6.0)
    assert l0_after(planted, ReLU(), steered) == pytest.approx(6, rel=0.2)
    if first_guess < 1:
        return
    unsteered = Penalty(form=L1(), weight=first_guess)
    assert abs(l0_after(planted, ReLU(), unsteered) / 6 - 1) > 0.3, "the control must miss it"


def test_counting_with_a_target_finds_it(planted):
    form = L0(target=6.0)
    activation = JumpReLU(threshold=0.3, bandwidth=0.5)
    found = l0_after(planted, activation, Penalty(form=form, weight=20.0), steps=200, lr=1e-2)
    assert found == pytest.approx(6, rel=0.2)
    free = l0_after(planted, activation, Penalty(form=form, weight=0.0), steps=200, lr=1e-2)
    assert abs(free / 6 - 1) > 0.3


def test_a_penalty_that_would_never_be_steered_is_refused():
    with pytest.raises(ValueError, match="set a warmup below 1"):
        Penalty(form=L1(), weight=1.0, warmup=1.0, target_l0=8.0)
    Penalty(form=L1(), weight=1.0, warmup=1.0)
    steering = Steering((Penalty(form=L1(), weight=1.0, warmup=0.99, target_l0=8.0),))
    dictionary = Dictionary(autoencoder("s", 4, 8, ReLU()))
    for done, moved in ((0.98, False), (0.99, True)):
        steering.charge(dictionary, dictionary.run(torch.ones(3, 4)), done)
        assert bool(steering.log_factor != 0) == moved
