"""Both pipelines with a subject on another device, from text to scores."""

import copy
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from far_device import FAR, far_device
from test_pipeline_families import TINY, reading, text  # noqa: F401  (a fixture)
from tiny_subject import tiny_llama

from unweave.activations.window import HarvestSettings
from unweave.artifact.check import check
from unweave.artifact.folder import open_artifact
from unweave.cli.app import main
from unweave.errors import UserError
from unweave.pipeline import decompile
from unweave.pipeline.settings import EvidenceSettings
from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings
from unweave.subject import Subject, wrap_module
from unweave.subject.device import known_device

SETTINGS = {
    "site": ("blocks.0.mlp.out",), "latents": 64, "lr": 1e-2, "batch": 96, "tokens": 1200,
    "context": 16, "threads": 1, "log_every": 4, "harvest": HarvestSettings(window_tokens=512),
    "recipe": ("batchtopk", "e2e-ds-braun"), "k": (4,),
}  # fmt: skip


class Inline:
    """The pool's work done at once: what `FAR` is belongs to the thread that asked for it."""

    def __init__(self, threads: int, begin: Callable[[], object]) -> None:
        begin()

    def submit(self, work: Callable[[Any], Any], item: Any, *, urgent: bool = True) -> Future:
        future: Future = Future()
        future.set_result(work(item))
        return future

    def close(self) -> None:
        pass


def on(device: torch.device | str) -> Subject:
    subject = reading(tiny_llama(max_position_embeddings=16))
    model = copy.deepcopy(subject.model).to(device)
    return wrap_module(model, name="tiny", tokenizer=subject.tokenizer)


def test_a_run_on_another_device_scores_as_one_here(text, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("unweave.activations.workers.Pool", Inline)
    monkeypatch.setattr("unweave.dictionaries.dictionary.product_dtype", lambda: torch.float32)
    settings = TrainSiteSettings(**SETTINGS, text=text)
    here = train_site(on("cpu"), settings, out=tmp_path / "here")
    with far_device():
        there = train_site(on(FAR), settings, out=tmp_path / "there")
    scores = [json.loads((p / "scores.json").read_text())["trained"] for p in (here, there)]
    assert scores[0].keys() == {"batchtopk-k4", "e2e-ds-braun-k4"}
    for name, found in scores[0].items():
        for score in ("ce_original", "ce_increase", "kl"):
            far = scores[1][name][score]["value"]
            assert found[score]["value"] == pytest.approx(far, rel=0.02, abs=2e-3), (name, score)


def test_a_whole_decompilation_on_another_device(text, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("unweave.activations.workers.Pool", Inline)
    for module in ("dictionaries.part", "training.local"):
        monkeypatch.setattr(f"unweave.{module}.product_dtype", lambda: torch.float32)
    small = {"tokens": 1000, "evidence": EvidenceSettings(most_tokens=256)}
    settings = TINY.model_copy(update={"text": text, **small})
    here = decompile(on("cpu"), settings=settings, out=tmp_path / "here")
    with far_device():
        there = decompile(on(FAR), settings=settings, out=tmp_path / "there")
    assert check(there).violations == []
    near, far = (open_artifact(out).scores() for out in (here, there))
    assert far.splice.propagated.kl.value == pytest.approx(near.splice.propagated.kl.value, rel=0.1)
    for name in ("mean_ablation", "random_dictionary"):  # not trained: equal to rounding
        kl = near.controls[name].kl.value
        assert far.controls[name].kl.value == pytest.approx(kl, rel=0.02)
    for one, other in zip(near.parts, far.parts, strict=True):
        assert other.fvu == pytest.approx(one.fvu, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        main(["train", "wren", "--out", str(tmp_path / "o"), "--site", "x", "--device", "cuda"])
    assert "no GPU cuda that torch can use" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_what_is_no_device_is_said():
    assert known_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="no device 'warp'"):
        known_device("warp")
