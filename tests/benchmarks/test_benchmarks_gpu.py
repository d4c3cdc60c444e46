"""The GPU's benchmark: refused where there is none; its race runs on the processor for a test."""

import math
import time

import pytest
import torch

from benchmarks import gpu, gpu_steps
from benchmarks.gpu_steps import Shape
from unweave.errors import UserError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(out)])
    with pytest.raises(UserError, match="torch finds none on this machine"):
        gpu.main()
    assert not out.exists()


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_a_race_times_everybody_who_can_train_the_kind(kind, monkeypatch):
    def seconds(work, *, least=1, repeats=1) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    monkeypatch.setattr(gpu_steps, "DEVICE", "cpu")
    for module in (gpu, gpu_steps):
        monkeypatch.setattr(module, "seconds_of", seconds)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    shape = Shape(kind, 16, 64, 128)
    found = gpu.race(shape, nominal=1e12)
    racers = {"unweave", "plain-autocast"} if kind == "topk" else {"unweave"}
    assert racers <= set(found) - {"shape", "encoder_flops"}
    mine = found["unweave"]
    assert mine["times_ours"] == 1
    assert mine["vectors_per_second"] == pytest.approx(128e3 / mine["step_ms"])
    share = 2 * 128 * 16 * 64 / (mine["step_ms"] / 1e3) / 1e12
    assert math.isclose(mine["share_of_nominal_rate"], share, rel_tol=1e-6)


def test_ours_trains_what_it_times(monkeypatch):
    monkeypatch.setattr(gpu_steps, "DEVICE", "cpu")
    shape = Shape("topk", 16, 64, 128)
    drawn = gpu_steps.batches(shape, count=2)
    step = gpu_steps.ours(shape, next(drawn))
    first, *_, last = (float(step(next(drawn)).total.detach()) for _ in range(40))
    assert last < 0.9 * first
