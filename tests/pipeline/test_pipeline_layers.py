"""Sites trained by processes of their own; one is killed in the middle of its task."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from unweave.artifact.tensors import load_tensors
from unweave.errors import UserError
from unweave.pipeline.layers import train_layers
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.training.fanout.executors import Here, Processes

SITES = ["blocks.0.resid_post", "blocks.1.resid_post"]
SETTINGS = TrainSiteSettings.model_validate(
    {
        "site": SITES[0], "recipe": "topk-short", "latents": 64, "text": "heldout",
        "tokens": 12000, "context": 64, "batch": 64, "heldout_tokens": 512, "log_every": 5,
        "checkpoint_seconds": 0,
    }
)  # fmt: skip


def kill_one_that_trains(out: Path, site: str, killed: list[int]) -> None:
    """Wait for a checkpoint of a site's task and kill the process that wrote it."""
    marks = out / f".{site}.unfinished" / "vectors" / "checkpoints"
    until = time.monotonic() + 60
    while time.monotonic() < until and not list(marks.glob("*/state.json")):
        time.sleep(0.01)
    owner = {p.pid for p in multiprocessing.active_children()}
    for pid in owner:
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)


@pytest.mark.slow
def test_a_killed_task_goes_on_and_ends_as_it_would_have(tmp_path: Path) -> None:
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_one_that_trains, args=(tmp_path / "out", SITES[0], killed)
    )
    killer.start()
    crew = Processes(1)
    scores = train_layers("wren", SETTINGS, SITES, out=tmp_path / "out", executor=crew)
    killer.join()
    assert len(killed) == 1
    assert list(scores) == SITES
    again = train_layers("wren", SETTINGS, SITES, out=tmp_path / "out", executor=Here())
    assert again == scores, "nothing is done twice"
    own = SETTINGS.model_copy(update={"threads": 1})
    whole = train_site("wren", own, out=tmp_path / "whole")
    found, wanted = (
        load_tensors(folder / "dictionaries" / "topk-short" / "weights.safetensors")
        for folder in (tmp_path / "out" / SITES[0], whole)
    )
    assert all((found[name] == wanted[name]).all() for name in wanted)


def test_what_a_site_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"blocks\.9"):
        train_layers("wren", SETTINGS, ["blocks.9.resid_post"], out=tmp_path, executor=Here())
