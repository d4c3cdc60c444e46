"""Checkpoints: written when due, whole or not at all, the newest one found again."""

import torch

from unweave.training.checkpoint import Checkpoints
from unweave.training.schedule import linear_decay


def state(value):
    return {"part": {"weight": torch.full((3,), float(value)), "step": torch.tensor(value)}}


def offer(checkpoints, done):
    checkpoints.offer(done, [{"done": done}], lambda: state(done))


def test_the_newest_of_two_slots_is_found(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", seconds=0)
    assert checkpoints.latest() is None
    for done in range(1, 5):
        offer(checkpoints, done)
        latest = Checkpoints(tmp_path / "c").latest()
        assert latest.done == done
        assert latest.metrics == [{"done": done}]
        assert torch.equal(latest.tensors["part"]["weight"], torch.full((3,), float(done)))
        assert latest.tensors["part"]["step"].item() == done
        assert len(list((tmp_path / "c").iterdir())) == min(done, 2)


def test_the_one_before_survives_a_failure_in_the_middle_of_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=0)
    offer(checkpoints, 1)
    offer(checkpoints, 2)
    bad = {"part": {"weight": torch.zeros(1)}, "no/such/../../\0": {"weight": torch.zeros(1)}}
    try:
        checkpoints.offer(3, [], lambda: bad)
    except ValueError:
        pass
    else:
        raise AssertionError("the write should have failed")
    assert Checkpoints(tmp_path).latest().done == 2
    offer(checkpoints, 4)
    assert Checkpoints(tmp_path).latest().done == 4


def test_nothing_is_asked_or_written_before_its_time(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", seconds=3600)
    checkpoints.offer(1, [], lambda: (_ for _ in ()).throw(AssertionError("asked too early")))
    assert not (tmp_path / "c").exists()


def test_no_folder_means_no_checkpoints():
    none = Checkpoints(None, seconds=0)
    offer(none, 1)
    assert none.latest() is None


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    rates = [linear_decay(step, 100) for step in range(101)]
    assert rates[0] == 0.2
    assert rates[4] == 1.0
    assert set(rates[4:51]) == {1.0}
    assert rates[75] == 0.5
    assert rates[100] == 0.0
    assert 0 < linear_decay(0, 1) <= 1
    assert linear_decay(0, 0) <= 1
