"""Several batches trainee by trainee instead of step by step: the same bits, cuts and logs."""

import pytest
import torch
from test_training_trainer import BATCH, EVERY_EIGHT, STEPS, source, trainee

from unweave.training.trainee import Trainee
from unweave.training.trainer import train


class _Blocks:
    """A source that gives as many batches at once as it is told to."""

    def __init__(self, source, count):
        self._source, self._count = source, count
        self.steps, self.batch = source.steps, source.batch

    def at(self, step):
        return self._source.at(step)

    def together(self, step):
        return self._count - step % self._count


def _trained(given, *, folder=None, kinds=("batchtopk", "switch")):
    both = [trainee(kind) for kind in kinds]
    log = train(both, given, settings=EVERY_EIGHT, folder=folder)
    return log, [t.state() for t in both]


@pytest.mark.parametrize("count", [2, 5, 64])
def test_batches_gone_through_trainee_by_trainee_give_the_same_bits(count):
    log, states = _trained(source())
    log_in_blocks, states_in_blocks = _trained(_Blocks(source(), count))
    assert log == log_in_blocks
    for one, other in zip(states, states_in_blocks, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_trainee_goes_through_its_block_before_the_next_one_does():
    order = []

    class Noted(Trainee):
        def step(self, batch):
            order.append((self.name, self.step_index))
            return super().step(batch)

    both = [
        Noted(t.dictionaries, t.settings, steps=STEPS, batch=BATCH, seed=9, name=t.name)
        for t in (trainee("batchtopk"), trainee("switch"))
    ]
    train(both, _Blocks(source(), 3), settings=EVERY_EIGHT)
    assert order[:6] == [(name, s) for name in ("batchtopk", "switch") for s in range(3)]
    # A line of the log is written after step 8, so that the block of steps 6 to 8 is cut short.
    assert order[12:16] == [(name, s) for name in ("batchtopk", "switch") for s in (6, 7)]


def test_a_run_cut_off_within_a_block_ends_in_the_same_bits(tmp_path):
    _, states = _trained(source())
    with pytest.raises(KeyboardInterrupt):
        _trained(_Blocks(source(die_at=18), 5), folder=tmp_path)
    log, resumed = _trained(_Blocks(source(), 5), folder=tmp_path)
    assert log[-1]["step"] == STEPS
    for one, other in zip(states, resumed, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
