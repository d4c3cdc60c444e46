"""We must not become slow without noticing: our step against plain torch, in one process."""

import pytest
import torch

from benchmarks.contestants.contract import Task
from benchmarks.contestants.ours import prepare
from benchmarks.contestants.plain import PlainTopK
from benchmarks.guard import best_ratios, fallen, interleaved_ratio
from benchmarks.quality import seconds_to, summary
from benchmarks.speed import ratios
from unweave.training.batches import VectorBatch
from unweave.training.trainee import Trainee

TASK = Task("topk", latents=2048, steps=100_000, settled=True)
ROWS = 1024


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_our_step_takes_less_than_half_of_a_plain_one(one_thread: None) -> None:
    x = torch.randn(ROWS, TASK.width, generator=torch.Generator().manual_seed(0))
    dictionary, settings = prepare(TASK)
    trainee = Trainee({"x": dictionary}, settings, steps=TASK.steps, batch=ROWS)
    batch = VectorBatch({"x": x})
    trainee.begin(batch)
    model = PlainTopK(TASK, lr=1e-3)
    ratio = interleaved_ratio(lambda: trainee.step(batch), lambda: model.step(x, x), turns=4)
    # 4 to 8 on a free core, whichever precision; a dense step of ours would be near 1.
    assert ratio > 2


def test_a_dense_step_in_our_place_is_found_out(one_thread: None) -> None:
    x = torch.randn(256, TASK.width, generator=torch.Generator().manual_seed(0))
    ours, other = PlainTopK(TASK, lr=1e-3), PlainTopK(TASK, lr=1e-3)
    assert interleaved_ratio(lambda: ours.step(x, x), lambda: other.step(x, x), turns=3) < 2


def raced(**best: float) -> dict:
    return {"contestants": {name: {"cpu_ms_best": ms} for name, ms in best.items()}}


def test_the_guard_names_a_ratio_that_fell() -> None:
    before = {"w": raced(unweave=10, sparsify=50, saelens=100)}
    slower = {"w": raced(unweave=20, sparsify=75, saelens=200)}
    found = fallen(before, slower, 0.2)
    assert [(f.contestant, f.committed, f.now) for f in found] == [("sparsify", 5.0, 3.75)]
    assert "sparsify takes 3.75 times our time, 5.00" in str(found[0])


def test_the_guard_does_not_mind_another_machine_or_a_missing_peer() -> None:
    before = {"w": raced(unweave=10, sparsify=50, saelens=100)}
    assert not fallen(before, {"w": raced(unweave=30, sparsify=150)}, 0.0)
    assert not fallen(before, {"w": raced(unweave=10, sparsify=40)}, 0.25)
    assert best_ratios(raced(**{"unweave": 2, "unweave-float32": 3, "plain": 8})) == {"plain": 4}


def test_a_ratio_is_taken_within_each_turn() -> None:
    times = {
        "unweave": [{"cpu": [1.0, 1.0, 9.0]}, {"cpu": [2.0]}],
        "sparsify": [{"cpu": [4.0]}, {"cpu": [10.0]}],
    }
    assert ratios(times, "unweave") == {"sparsify": {"median": 4.5, "low": 4.0, "high": 5.0}}


def test_time_to_target_is_read_between_checkpoints() -> None:
    curve = [{"cpu_s": 1.0, "fvu": 0.5}, {"cpu_s": 2.0, "fvu": 0.3}, {"cpu_s": 3.0, "fvu": 0.2}]
    assert seconds_to(curve, 0.4) == pytest.approx(1.5)
    assert seconds_to(curve, 0.6) == 1.0
    assert seconds_to(curve, 0.1) is None
    slow = [{"cpu_s": 8.0, "fvu": 0.6}, {"cpu_s": 10.0, "fvu": 0.4}]
    found = summary({"unweave": curve, "sparsify": slow, "plain": [{"cpu_s": 1.0, "fvu": 0.9}]})
    assert found["best_peer"] == "sparsify"
    assert found["share_of_best_peers_time"] == {"unweave": 0.15}
    assert found["cpu_s_to_target"]["plain"] is None
