"""Dead latents: who counts as one, who is charged for them, and that restarts really happen."""

import functools

import pytest
import torch

from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.code import SparseCode
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import DictionarySpec, Port, autoencoder
from unweave.dictionaries.encoder.glu import GLU
from unweave.training.batches import ArraySource
from unweave.training.dead import AuxK, DeadLatents, Resample, Silence, auxk_loss, resample_
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.worlds.features import PlantedSettings, planted_world

D, LATENTS = 6, 20
DEAD = torch.zeros(LATENTS, dtype=torch.bool)
DEAD[[2, 5, 6, 17]] = True


def filled(activation=None, *, seed: int = 0, **changes) -> Dictionary:
    spec = autoencoder("s", D, LATENTS, activation or TopK(k=3), **changes)
    dictionary = Dictionary(spec).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in dictionary.named_parameters():
            if name != "activation.log_threshold":
                weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return dictionary


def inputs(rows: int = 50, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, D, generator=generator, dtype=torch.float64)


def test_silence_is_counted_in_vectors():
    silence = Silence(3)
    for dense in ([[1, 0, 0], [1, 0, 0]], [[0, 0, 2], [0, 0, 0]], [[0, 0, -1], [0, 0, 0]]):
        silence.note(SparseCode.from_dense(torch.tensor(dense).float()))
    assert silence.since.tolist() == [4, 6, 0]
    assert silence.dead(4).tolist() == [False, True, False], "more than four, not four"
    chosen = SparseCode.from_topk(torch.tensor([[1]]), torch.zeros(1, 1), 3)
    silence.note(chosen)
    assert silence.since[1] == 7, "chosen with strength zero is silent"


@pytest.mark.parametrize("pre_bias", [False, True])
def test_only_the_dead_learn_from_what_is_left_over(pre_bias):
    dictionary, x = filled(pre_bias=pre_bias), inputs()
    missing = inputs(seed=3).requires_grad_()
    x.requires_grad_()
    auxk_loss(dictionary, x, missing, DEAD, None).backward()
    encoder = dictionary.encoder
    for weight in (encoder.W_enc, encoder.b_enc, dictionary.W_dec):
        assert weight.grad is not None
        rows = weight.grad.to_dense().reshape(LATENTS, -1)
        assert rows[~DEAD].eq(0).all()
        assert rows[DEAD].abs().sum(1).gt(0).all()
    assert dictionary.b_dec.grad is None
    assert x.grad is None
    assert missing.grad is None


@pytest.mark.parametrize("k", [1, 2, None, 50])
def test_the_loss_of_the_dead_by_hand(k):
    dictionary, x, missing = filled(), inputs(), inputs(seed=3)
    which = DEAD.nonzero()[:, 0]
    pre = torch.relu(x @ dictionary.W_enc[which].T + dictionary.b_enc[which])
    most = min(k or D // 2, 4)
    kept = torch.zeros_like(pre).scatter(1, pre.topk(most, 1).indices, 1.0) * pre
    error = (kept @ dictionary.W_dec[which] - missing).square().sum()
    wanted = error / (missing - missing.mean(0)).square().sum()
    torch.testing.assert_close(auxk_loss(dictionary, x, missing, DEAD, k), wanted)


def restarted(dictionary: Dictionary, dead: torch.Tensor = DEAD, *, height: float = 0.2, x=None):
    optimizer = torch.optim.Adam(dictionary.parameters())
    dictionary.run(inputs()).y.square().sum().backward()
    optimizer.step()
    before = {name: weight.detach().clone() for name, weight in dictionary.named_parameters()}
    x = inputs(400, seed=4) if x is None else x
    missing = x - dictionary.run(x).y.detach()
    count = resample_(
        dictionary, optimizer, x, missing, dead, height=height,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return before, count, optimizer, x, missing


def test_restarting_really_writes_the_weights():
    """The known bug of public trainers: `W[dead][:n] = ...` writes into a copy."""
    dictionary = filled()
    before, count, optimizer, _, _ = restarted(dictionary)
    assert count == 4
    for name in ("W_dec", "encoder.W_enc", "encoder.b_enc"):
        weight = dictionary.get_parameter(name)
        changed = (weight != before[name]).reshape(LATENTS, -1).any(1)
        assert torch.equal(changed, DEAD), name
        for moment in ("exp_avg", "exp_avg_sq"):
            rows = optimizer.state[weight][moment].reshape(LATENTS, -1)
            assert rows[DEAD].eq(0).all(), (name, moment)
            assert rows[~DEAD].ne(0).any(), (name, moment)
    assert torch.equal(dictionary.b_dec, before["b_dec"])


def test_restarts_point_at_what_was_read_and_what_was_missing():
    dictionary = filled()
    _, _, _, x, missing = restarted(dictionary, height=0.3)
    living = dictionary.W_enc[~DEAD].norm(dim=1).mean()
    torch.testing.assert_close(dictionary.W_enc[DEAD].norm(dim=1), (0.3 * living).expand(4))
    centred = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    read = torch.nn.functional.normalize(dictionary.W_enc[DEAD], dim=1) @ centred.T
    assert read.amax(1).min() > 1 - 1e-9
    written = torch.nn.functional.normalize(missing, dim=1)[read.argmax(1)]
    torch.testing.assert_close(
        torch.nn.functional.normalize(dictionary.W_dec[DEAD], dim=1), written
    )
    # Nothing of it fires at the middle of the data.
    at_mean = x.mean(0) @ dictionary.W_enc[DEAD].T + dictionary.b_enc[DEAD]
    assert at_mean.abs().max() < 1e-12


def test_badly_served_rows_are_drawn_in_proportion_to_their_squared_loss():
    dictionary = filled()
    with torch.no_grad():
        dictionary.W_dec.zero_()
        dictionary.b_dec.zero_()
    lengths = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = torch.cat([lengths[0] * inputs(100)[:1], lengths[1] * inputs(100, seed=8)[:1]])
    x = x / x.norm(dim=1, keepdim=True) * lengths[:, None]
    drawn = []
    for seed in range(300):
        optimizer = torch.optim.Adam(dictionary.parameters())
        resample_(
            dictionary, optimizer, x, x, DEAD, height=0.2,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        direction = torch.nn.functional.normalize(dictionary.W_enc[DEAD], dim=1)
        drawn.append((direction @ (x[1] - x.mean(0)) > 0).double().mean())
    # Losses 1 and 4: squared 1 and 16.
    assert torch.stack(drawn).mean().item() == pytest.approx(16 / 17, abs=0.03)


def test_all_dead_or_none_is_no_trouble():
    dictionary = filled()
    before, count, _, _, _ = restarted(dictionary, torch.zeros_like(DEAD))
    assert count == 0
    assert torch.equal(dictionary.W_dec, before["W_dec"])
    everybody = filled()
    restarted(everybody, torch.ones_like(DEAD))
    assert all(weight.isfinite().all() for weight in everybody.parameters())


@functools.cache
def planted() -> torch.Tensor:
    settings = PlantedSettings(d=D, n_features=12, mean_active=2, noise_share=0.01)
    return planted_world(settings, seed=5).draw(2048, seed=6)[0]


def trained(
    dead: DeadLatents, *, steps: int = 60, batch: int = 128, kill: bool = True, encoder=None
):
    changes = {} if encoder is None else {"encoder": encoder}
    dictionary = Dictionary(autoencoder("s", D, LATENTS, TopK(k=2), **changes))
    source = ArraySource({"s": planted()}, batch=batch, steps=steps, seed=1)
    trainee = Trainee(
        {"d": dictionary}, TraineeSettings(dead=dead, lr=1e-2), steps=steps, batch=batch, seed=2
    )
    begin = trainee.begin

    def killing(first) -> None:
        begin(first)
        if kill:
            with torch.no_grad():
                dictionary.encoder.b_enc[DEAD] = -50.0

    trainee.begin = killing
    log = train([trainee], source, settings=TrainSettings(log_every=steps // 20 or 1))
    fired = dictionary.encode(planted()).fired() > 0
    return dictionary, fired, trainee, log


@pytest.mark.parametrize("steps", [40, 160])
def test_what_counts_as_dead_scales_with_the_run(steps):
    *_, trainee, log = trained(DeadLatents(silent_share=0.6, auxk=None), steps=steps)
    assert trainee.silence["d"].since[DEAD].eq(steps * 128).all()
    at = [line["step"] for line in log if line["d.alive"] <= 1 - 4 / LATENTS]
    assert at[0] == pytest.approx(0.6 * steps, abs=0.05 * steps + 1)


def test_restarts_bring_the_dead_back_and_nothing_does_not():
    nothing = DeadLatents(auxk=None)
    restarts = DeadLatents(silent_share=0.05, auxk=None, resample=Resample(at=(0.3, 0.5)))
    assert not trained(nothing)[1][DEAD].any()
    assert trained(restarts)[1][DEAD].sum() >= 3


def test_the_auxiliary_loss_moves_the_dead_alone():
    dictionary, *_ = trained(DeadLatents(silent_share=0.05, auxk=AuxK(k=2)))
    control, *_ = trained(DeadLatents(silent_share=0.05, auxk=None))
    start = trained(DeadLatents(silent_share=0.99, auxk=None), steps=1)[0]
    # At -50 nothing of a dead latent fires, so that even this loss cannot reach it ...
    torch.testing.assert_close(dictionary.W_dec[DEAD], control.W_dec[DEAD])
    torch.testing.assert_close(control.encoder.W_enc[DEAD], start.encoder.W_enc[DEAD])


def test_latents_that_are_merely_too_weak_are_brought_back_by_the_auxiliary_loss():
    """TopK's common death: positive, but never among the k largest."""

    def alive(auxk: AuxK | None) -> int:
        dictionary = Dictionary(autoencoder("s", D, LATENTS, TopK(k=2)))
        source = ArraySource({"s": planted()}, batch=128, steps=150, seed=1)
        dead = DeadLatents(silent_share=0.05, auxk=auxk)
        trainee = Trainee(
            {"d": dictionary}, TraineeSettings(dead=dead, lr=1e-2), steps=150, batch=128, seed=2
        )
        begin = trainee.begin

        def weakening(first) -> None:
            begin(first)
            with torch.no_grad():
                dictionary.encoder.W_enc[DEAD] *= 0.02

        trainee.begin = weakening
        train([trainee], source)
        return int((dictionary.encode(planted()).fired() > 0)[DEAD].sum())

    assert alive(AuxK(weight=1.0, k=2)) > alive(None)


def test_who_shares_rows_is_not_revived():
    both = DeadLatents(silent_share=0.05, auxk=AuxK(), resample=Resample())
    dictionary, *_ = trained(both, kill=False, encoder=GLU())
    assert all(weight.isfinite().all() for weight in dictionary.parameters())


@pytest.mark.parametrize("activation", [ReLU(), JumpReLU(threshold=0.1)])
def test_a_transcoder_is_restarted_between_its_sites(activation):
    spec = DictionarySpec(
        reads=(Port(site="in", width=D),),
        writes=(Port(site="out", width=4),),
        n_latents=LATENTS,
        activation=activation,
        decoder="free",
    )
    dictionary = Dictionary(spec).double()
    with torch.no_grad():
        dictionary.encoder.W_enc.copy_(inputs(LATENTS, seed=5))
        dictionary.W_dec.copy_(3 * inputs(LATENTS, seed=6)[:, :4])
    missing = inputs(seed=7)[:, :4]
    resample_(
        dictionary, torch.optim.Adam(dictionary.parameters()), inputs(), missing, DEAD,
        height=0.5, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    lengths = dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(lengths[DEAD], lengths[~DEAD].mean().expand(4))


def test_the_auxiliary_loss_may_come_now_and_then_with_as_much_weight_in_all():
    rare = AuxK(weight=0.25, every=3)
    found = [rare.at(step) for step in range(6)]
    assert [one is not None for one in found] == [True, False, False] * 2
    assert sum(one.weight for one in found if one is not None) == 6 * rare.weight
    always, now_and_then = (
        trained(DeadLatents(silent_share=0.05, auxk=AuxK(weight=0.25, every=every)))[0].W_dec
        for every in (1, 3)
    )
    assert not torch.equal(always, now_and_then)
