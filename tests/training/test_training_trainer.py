"""The loop: resumed runs end in the same bits, and company changes nothing."""

import functools
import json
import sys
import types

import pytest
import torch
from tiny_subject import tiny_llama, tiny_rows

from unweave.activations.workers import Workers
from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.encoder.switch import Switch
from unweave.errors import UserError
from unweave.training.batches import ArraySource, TokenSource, VectorBatch
from unweave.training.dead import AuxK, DeadLatents, Resample
from unweave.training.metrics_log import open_tracker
from unweave.training.objectives.end_to_end import EndToEnd
from unweave.training.penalties.l0 import PreActivation
from unweave.training.penalties.pointwise import L1, Lp, Tanh
from unweave.training.penalties.weighted import Penalty
from unweave.training.plateau import PlateauSettings
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.worlds.features import PlantedSettings, planted_world

D, LATENTS, BATCH, STEPS = 12, 40, 64, 32
EVERY_EIGHT = TrainSettings(log_every=8, checkpoint_seconds=0)
DEAD = DeadLatents(silent_share=0.02, auxk=AuxK(k=4), resample=Resample(at=(0.3, 0.6)))
STEERED = Penalty(form=L1(), weight=0.3, warmup=0.1, target_l0=6.0, gain=0.1)

KINDS = {
    "batchtopk": (BatchTopK(k=3), {"nesting": (10, LATENTS)}, {"k_from": 4.0, "dead": DEAD}),
    "steered": (ReLU(), {"decoder": "free"}, {"penalties": (STEERED,), "betas": (0.0, 0.999)}),
    "jumprelu": (
        JumpReLU(threshold=0.1, bandwidth=0.5, gradient_to="all"),
        {"decoder": "free"},
        {
            "penalties": (
                Penalty(form=Tanh(), weight=0.2, warmup=1.0),
                Penalty(form=PreActivation(), weight=1e-3),
            )
        },
    ),
    "annealed": (
        Gated(),
        {"pre_bias": True},
        {"penalties": (Penalty(form=Lp(p=0.2, anneal_from=0.2), weight=0.3),), "dead": DEAD},
    ),
    "switch": (TopK(k=3), {"encoder": Switch(experts=4), "pre_bias": True}, {"dead": DEAD}),
}
ALL = tuple(KINDS)


def trainee(kind: str, **more) -> Trainee:
    activation, shape, settings = KINDS[kind]
    dictionary = Dictionary(autoencoder("s", D, LATENTS, activation, **shape))
    chosen = TraineeSettings(**{"lr": 5e-3, **settings, **more})
    return Trainee({"d": dictionary}, chosen, steps=STEPS, batch=BATCH, seed=9, name=kind)


@functools.cache
def planted() -> torch.Tensor:
    settings = PlantedSettings(d=D, n_features=30, mean_active=3, noise_share=0.01)
    return 7 * planted_world(settings, seed=1).draw(1024, seed=2)[0]


def source(*, die_at: int | None = None) -> ArraySource:
    made = ArraySource({"s": planted()}, batch=BATCH, steps=STEPS, seed=3)
    give = made.at

    def at(step: int) -> VectorBatch:
        if step == die_at:
            raise KeyboardInterrupt
        return give(step)

    made.at = at
    return made


def states(trainees) -> dict[str, torch.Tensor]:
    return {f"{t.name}.{key}": value for t in trainees for key, value in t.state().items()}


def same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    differing = [key for key in wanted if not torch.equal(found[key], wanted[key])]
    assert not differing


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainees = [trainee(kind) for kind in ALL]
    log = train(trainees, source(), settings=EVERY_EIGHT, folder=folder)
    return states(trainees), log, (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("die_at", [5, 16, 29])
def test_a_cut_run_ends_in_the_same_bits(whole, die_at, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(
            [trainee(k) for k in ALL], source(die_at=die_at), settings=EVERY_EIGHT, folder=tmp_path
        )
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"half a li')
    again = [trainee(kind) for kind in ALL]
    log = train(again, source(), settings=EVERY_EIGHT, folder=tmp_path)
    wanted, lines, written = whole
    same_bits(states(again), wanted)
    assert log == lines
    assert (tmp_path / "metrics.jsonl").read_bytes() == written


def test_a_run_cut_again_and_again_ends_in_the_same_bits(whole, tmp_path):
    for die_at in (11, 17):
        again = [trainee(kind) for kind in ALL]
        with pytest.raises(KeyboardInterrupt):
            train(again, source(die_at=die_at), settings=EVERY_EIGHT, folder=tmp_path)
    again = [trainee(kind) for kind in ALL]
    assert train(again, source(), settings=EVERY_EIGHT, folder=tmp_path) == whole[1]
    same_bits(states(again), whole[0])


def test_a_run_that_is_not_resumed_ends_in_other_bits(whole, tmp_path):
    """Control: a checkpoint that lacks one tensor's worth of history is noticed."""
    with pytest.raises(KeyboardInterrupt):
        train([trainee("steered")], source(die_at=21), settings=EVERY_EIGHT, folder=tmp_path)
    again = trainee("steered")
    restore = again.restore

    def forgetful(tensors):
        restore({k: torch.zeros_like(v) if "exp_avg" in k else v for k, v in tensors.items()})

    again.restore = forgetful
    train([again], source(), settings=EVERY_EIGHT, folder=tmp_path)
    with pytest.raises(AssertionError):
        same_bits(states([again]), {k: v for k, v in whole[0].items() if "steered" in k})


def test_a_finished_run_is_not_done_again(whole, tmp_path):
    first = [trainee("batchtopk")]
    log = train(first, source(), settings=EVERY_EIGHT, folder=tmp_path)
    again = [trainee("batchtopk")]
    assert train(again, source(die_at=0), settings=EVERY_EIGHT, folder=tmp_path) == log
    same_bits(states(again), states(first))
    assert not again[0].modules.training


@pytest.mark.parametrize("threads", [None, 2])
def test_many_at_once_are_what_each_is_alone(whole, threads):
    if threads is None:
        for kind in ALL:
            alone = trainee(kind)
            train([alone], source(), settings=EVERY_EIGHT)
            same_bits(states([alone]), {k: v for k, v in whole[0].items() if k.startswith(kind)})
        return
    with Workers(threads) as workers:
        together = [trainee(kind) for kind in ALL]
        log = train(together, source(), settings=EVERY_EIGHT, workers=workers)
    same_bits(states(together), whole[0])
    assert log == whole[1]


def test_the_log_says_what_was_seen_since_the_last_line(whole):
    _, log, written = whole
    assert [json.loads(line) for line in written.splitlines()] == log
    assert [(line["trainee"], line["step"]) for line in log] == [
        (kind, step) for step in range(8, STEPS + 1, 8) for kind in ALL
    ]
    first, last = log[0], log[-len(ALL)]
    assert first["d.l0"] > 6, "k begins four times as large"
    assert last["d.l0"] == pytest.approx(3, abs=0.2)
    for line in log:
        numbers = [v for v in line.values() if not isinstance(v, str)]
        assert torch.tensor(numbers).isfinite().all()


def test_two_trainees_of_one_name_are_refused():
    with pytest.raises(UserError, match="Two trainees are called switch"):
        train([trainee("switch"), trainee("switch")], source())


def test_a_plateau_ends_a_run_and_its_absence_does_not(tmp_path):
    # A learning rate so small that nothing gets better.
    stuck = trainee("batchtopk", lr=1e-9, k_from=None)
    settings = TrainSettings(log_every=5, plateau=PlateauSettings(lines=3, gain=0.02))
    log = train([stuck], source(), settings=settings)
    assert len(log) < STEPS / 5
    assert stuck.step_index == log[-1]["step"]
    learning = trainee("batchtopk", k_from=None)
    assert len(train([learning], source(), settings=settings)) > len(log)


def test_a_run_stopped_early_leaves_k_as_the_spec_says():
    stopped = trainee("batchtopk", k_from=4.0, k_until=1.0)
    settings = TrainSettings(log_every=1, plateau=PlateauSettings(lines=1, gain=0.99))
    assert len(train([stopped], source(), settings=settings)) < STEPS
    dictionary = next(iter(stopped.dictionaries.values()))
    assert dictionary.activation.k == dictionary.spec.activation.k


def test_a_plateau_waits_for_the_slowest():
    stuck, learning = trainee("batchtopk", lr=1e-9, k_from=None), trainee("steered")
    settings = TrainSettings(log_every=5, plateau=PlateauSettings(lines=3, gain=0.02))
    alone = len(train([trainee("batchtopk", lr=1e-9, k_from=None)], source(), settings=settings))
    assert len(train([stuck, learning], source(), settings=settings)) / 2 > alone


def test_vectors_of_another_length_train_the_same(whole):
    """Scales take the size of the data out: a power of two leaves every bit."""
    long = trainee("batchtopk")
    given = source()
    give = given.at
    given.at = lambda step: VectorBatch({"s": 64 * give(step).vectors["s"]})
    train([long], given, settings=EVERY_EIGHT)
    wanted = {k: v for k, v in whole[0].items() if k.startswith("batchtopk")}
    found = states([long])
    scales = [key for key in wanted if ".scales." in key]
    for key in scales:
        torch.testing.assert_close(64 * found.pop(key), wanted[key])
    same_bits(found, {k: v for k, v in wanted.items() if k not in scales})


def test_the_gradient_is_cut_to_its_longest():
    """Seen in Adam's first moment: after one step it is (1 - beta1) times the gradient."""

    def moment(clip: float | None) -> torch.Tensor:
        one = trainee("batchtopk", clip=clip, betas=(0.5, 0.9))
        batch = source().at(0)
        one.begin(batch)
        one.step(batch)
        moments = [v.flatten() for k, v in one.state().items() if k.endswith("exp_avg")]
        return 2 * torch.cat(moments)

    free = moment(None)
    cut = moment(0.01)
    assert free.norm() > 1
    assert cut.norm().item() == pytest.approx(0.01 * D**0.5, rel=1e-4)
    torch.testing.assert_close(cut / cut.norm(), free / free.norm(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moment(1e6), free)


def test_unit_rows_stay_unit_and_normalised_ones_need_not():
    unit, free = trainee("batchtopk"), trainee("jumprelu")
    train([unit, free], source())
    lengths = unit.dictionaries["d"].W_dec.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(LATENTS))
    assert free.dictionaries["d"].W_dec.norm(dim=1).std() > 1e-3


class Tracked:
    """A tracker's module that remembers."""

    def __init__(self) -> None:
        self.lines, self.begun, self.ended = [], [], 0

    def module(self, name: str) -> types.ModuleType:
        module = types.ModuleType(name)
        module.init = lambda **settings: self.begun.append(settings)
        module.log = self.lines.append

        def finish() -> None:
            self.ended += 1

        module.finish = finish
        return module


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_tracker_gets_every_number(kind, monkeypatch):
    tracked = Tracked()
    monkeypatch.setitem(sys.modules, kind, tracked.module(kind))
    tracker = open_tracker(kind, "dictionaries", {"lr": 1})
    log = train([trainee("switch"), trainee("steered")], source(), tracker=tracker)
    assert tracked.begun == [{"project": "dictionaries", "config": {"lr": 1}}]
    assert tracked.ended == 1
    assert len(tracked.lines) == len(log)
    name = log[0]["trainee"]
    assert tracked.lines[0][f"{name}/d.fvu"] == log[0]["d.fvu"]
    assert all(isinstance(value, float | int) for value in tracked.lines[0].values())


def test_a_tracker_is_told_that_the_run_is_over_even_when_it_fails(monkeypatch):
    tracked = Tracked()
    monkeypatch.setitem(sys.modules, "wandb", tracked.module("wandb"))
    with pytest.raises(KeyboardInterrupt):
        train([trainee("switch")], source(die_at=7), tracker=open_tracker("wandb", "p", {}))
    assert tracked.ended == 1


def test_an_unknown_or_absent_tracker_is_refused(monkeypatch):
    with pytest.raises(UserError, match="no tracker mlflow; unweave knows wandb and trackio"):
        open_tracker("mlflow", "p", {})
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        open_tracker("trackio", "p", {})


def test_batches_are_functions_of_the_step_alone():
    given = source()
    forwards = [given.at(step).vectors["s"] for step in range(STEPS)]
    backwards = [given.at(step).vectors["s"] for step in reversed(range(STEPS))]
    for a, b in zip(forwards, reversed(backwards), strict=True):
        assert torch.equal(a, b)
    epoch = torch.cat(forwards[:16])
    assert len(epoch.unique(dim=0)) == 1024, "every vector once in an epoch"
    assert not torch.equal(forwards[0], forwards[16]), "another order in the next"


def test_a_source_without_enough_vectors_is_refused():
    with pytest.raises(UserError, match="10 vectors do not fill one batch of 64"):
        ArraySource({"s": torch.zeros(10, 2)}, batch=64)
    with pytest.raises(UserError, match="as many vectors each"):
        ArraySource({"s": torch.zeros(10, 2), "t": torch.zeros(11, 2)}, batch=4)


def test_side_by_side_end_to_end_is_each_alone():
    """Two passes of one network at once must not meet in its hooks."""
    subject, rows = tiny_llama(), tiny_rows(24)
    vectors = subject.run(rows, capture=["blocks.0.mlp.out"]).sites["blocks.0.mlp.out"]
    begin = VectorBatch({"blocks.0.mlp.out": vectors[:, 1:].flatten(0, 1)})

    def trained(names: str, workers: Workers | None) -> dict[str, torch.Tensor]:
        given = TokenSource(subject, rows, rows=4, steps=6, seed=2)
        made = []
        for name in names:
            spec = autoencoder("blocks.0.mlp.out", 32, 64, TopK(k=ord(name) - ord("a") + 2))
            settings = TraineeSettings(objective=EndToEnd(), lr=1e-2)
            made.append(
                Trainee({"d": Dictionary(spec)}, settings, steps=6, batch=given.batch, name=name)
            )
        train(made, given, begin=begin, workers=workers)
        return states(made)

    with Workers(2) as workers:
        together = trained("abc", workers)
    for name in "abc":
        same_bits(trained(name, None), {k: v for k, v in together.items() if k[0] == name})
