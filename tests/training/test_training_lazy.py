"""Rows that wait for their latent to fire: Adam's moments to the bit, and nothing else touched."""

import pytest
import torch
from torch import nn

from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.kernels.listed import listed_rows
from unweave.dictionaries.kernels.native import building
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.lazy import Lazy
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.training.update import update_

pytestmark = pytest.mark.skipif(building.library() is None, reason="no C compiler here")
D, ROWS, STEPS = 24, 64, 12


def vectors(seed: int = 1, rows: int = 512) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def made(n: int, k: int, lazy: Lazy | None, **more) -> Trainee:
    torch.manual_seed(0)
    settings = TraineeSettings(lazy=lazy, **more)
    dictionary = Dictionary(autoencoder("s", D, n, TopK(k=k)))
    return Trainee({"d": dictionary}, settings, steps=STEPS, batch=ROWS, seed=3)


def trained(n: int, k: int, lazy: Lazy | None, *, steps: int = STEPS, **more) -> Trainee:
    trainee = made(n, k, lazy, **more)
    source = ArraySource({"s": vectors()}, batch=ROWS, steps=steps, seed=5)
    train([trainee], source)
    return trainee


def moments(trainee: Trainee, name: str) -> dict[str, torch.Tensor]:
    return trainee.optimizer.state[getattr(trainee.dictionaries["d"], name)]


def test_where_every_latent_fires_in_every_step_nothing_differs():
    lazy, plain = trained(16, 8, Lazy()), trained(16, 8, None)
    assert int(moments(lazy, "W_dec")["seen"].min()) == STEPS, "all latents fired in the last step"
    for (name, a), b in zip(
        lazy.modules.state_dict().items(), plain.modules.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def stepped(lazy: Lazy | None, silent: set[int]) -> tuple[torch.Tensor, dict, list[torch.Tensor]]:
    """A matrix of two rows whose second has no gradient in the `silent` steps."""
    weight = nn.Parameter(vectors(2, 2).clone())
    modules = nn.ModuleDict({"m": nn.Linear(D, 2, bias=False)})
    modules["m"].weight = weight
    optimizer = torch.optim.Adam([weight], lr=0.05, betas=(0.8, 0.9), fused=True)
    rows = []
    for step in range(8):
        gradient, of = vectors(10 + step, 2), (2, D)
        if step in silent:
            gradient[1] = 0
            if lazy:
                gradient = torch.sparse_coo_tensor(torch.tensor([[0]]), gradient[:1], of)
        weight.grad = gradient
        update_(modules, optimizer, limit=None, in_all=lambda _: 0.0, lazy=lazy)
        rows.append(weight.detach().clone())
    return weight.detach(), optimizer.state[weight], rows


def test_moments_fade_by_the_steps_that_were_missed_and_their_way_is_made_up():
    silent = {3, 4, 5}
    plain, state, _ = stepped(None, silent)
    lazy, lazy_state, rows = stepped(Lazy(), silent)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(lazy_state[name], state[name], rtol=1e-5, atol=1e-8)
    assert torch.equal(lazy[0], plain[0]), "the row that always had a gradient"
    assert torch.equal(rows[5][1], rows[2][1]), "the other waited"
    gap = float((lazy[1] - plain[1]).abs().max())
    assert gap < 0.02, "the bias corrections, which move on meanwhile, are today's"
    for missed in ("fade", "stay"):
        control, its_state, _ = stepped(Lazy(missed=missed), silent)
        assert float((control[1] - plain[1]).abs().max()) > 3 * max(gap, 0.01)
        faded = torch.allclose(its_state["exp_avg_sq"], state["exp_avg_sq"])
        assert faded == (missed == "fade")


def test_only_the_rows_of_latents_that_fired_are_written():
    trainee = made(400, 2, Lazy(), dead=DeadLatents(auxk=None))
    batches = [VectorBatch({"s": rows}) for rows in vectors().split(ROWS)]
    trainee.begin(batches[0])
    dictionary = trainee.dictionaries["d"]
    before = dictionary.W_enc.detach().clone(), dictionary.W_dec.detach().clone()
    seen = trainee.step(batches[0]).watched["d"].passed.sparse_code
    fired = seen.fired() > 0
    assert 20 < int(fired.sum()) < 200
    for was, weight in zip(before, (dictionary.W_enc, dictionary.W_dec), strict=True):
        assert torch.equal((was != weight).any(1), fired)
    trainee.step(batches[1])
    control = made(400, 2, None, dead=DeadLatents(auxk=None))
    control.begin(batches[0])
    control.step(batches[0])
    before = control.dictionaries["d"].W_enc.detach().clone()
    again = control.step(batches[1]).watched["d"].passed.sparse_code.fired() > 0
    moved = (before != control.dictionaries["d"].W_enc).any(1)
    assert bool((moved & ~again).any()), "the control: momentum moves latents that are silent"


def test_gradients_are_listed_for_parameters_and_otherwise_whole():
    trainee = made(400, 2, None)
    trainee.begin(VectorBatch({"s": vectors()}))
    dictionary, x = trainee.dictionaries["d"], vectors(7, ROWS)
    grads = {}
    for wanted in (True, False):
        dictionary.zero_grad()
        with listed_rows(wanted):
            passed = dictionary.run(x, target=x)
        assert passed.misfit is not None
        passed.misfit.backward()
        grads[wanted] = dictionary.W_enc.grad, dictionary.W_dec.grad
        assert all(grad.is_sparse == wanted for grad in grads[wanted])
    for listed, whole in zip(grads[True], grads[False], strict=True):
        assert torch.equal(listed.to_dense(), whole)
    with listed_rows():
        assert dictionary.spec.decoder == "unit"
        normalised = Dictionary(dictionary.spec.model_copy(update={"decoder": "normalised"}))
        normalised.load_state_dict(dictionary.state_dict())
        normalised.run(x).y.square().sum().backward()
    assert not normalised.W_dec.grad.is_sparse
    assert normalised.W_enc.grad.is_sparse


@pytest.mark.parametrize("missed", ["made_up", "stay"])
def test_a_cut_run_resumes_to_the_same_bits_with_latents_waiting_and_dead(missed, tmp_path):
    lazy, dead = Lazy(missed=missed), DeadLatents(silent_share=0.2)
    whole = trained(400, 2, lazy, dead=dead)
    assert int(moments(whole, "W_enc")["seen"].min()) < STEPS, "some wait at the end"
    settings = TrainSettings(log_every=5, checkpoint_seconds=0)
    half = made(400, 2, lazy, dead=dead)

    class Cut(Exception):
        pass

    source = ArraySource({"s": vectors()}, batch=ROWS, steps=STEPS, seed=5)
    at = source.at

    def breaking(step: int) -> VectorBatch:
        if step == 7:
            raise Cut
        return at(step)

    source.at = breaking
    with pytest.raises(Cut):
        train([half], source, settings=settings, folder=tmp_path)
    resumed = made(400, 2, lazy, dead=dead)
    source.at = at
    train([resumed], source, settings=settings, folder=tmp_path)
    assert resumed.silence["d"].dead(resumed._limit).any(), "AuxK had something to do"
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, resumed.state()[name]), name


def test_latents_that_wait_train_as_well_as_others():
    generator = torch.Generator().manual_seed(4)
    atoms = torch.nn.functional.normalize(torch.randn(48, D, generator=generator), dim=1)
    active = torch.rand(2048, 48, generator=generator) < 0.04
    x = (active * (1 + torch.rand(2048, 48, generator=generator))) @ atoms
    fvu = {}
    for name, lazy in (("plain", None), ("lazy", Lazy()), ("fade", Lazy(missed="fade"))):
        trainee = made(96, 3, lazy, lr=5e-3, dead=DeadLatents(auxk=None))
        trainee.steps = 150
        source = ArraySource({"s": x}, batch=32, steps=trainee.steps, seed=5)
        settings = TrainSettings(log_every=30)
        fvu[name] = train([trainee], source, settings=settings)[-1]["d.fvu"]
    assert fvu["lazy"] < 1.05 * fvu["plain"]
    assert fvu["fade"] > 1.1 * fvu["plain"], "the control: rare latents hardly learn without"
