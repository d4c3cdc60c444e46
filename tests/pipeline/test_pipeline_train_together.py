"""`torchrun` and `train_site`: the folder that many processes make is the one that one makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_in_parallel import SETTINGS

from unweave.artifact.tensors import load_tensors

SCRIPT = Path(__file__).parent / "train_in_parallel.py"
HOWS = ("rows", "latents")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders: of one process, of two that share rows, of two that share latents."""
    folder = tmp_path_factory.mktemp("together")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*launch, str(SCRIPT), str(folder)],
        # Products in bfloat16 would be rounded, and every tie of theirs broken, in another order.
        env={**os.environ, "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("recipe", SETTINGS.recipe)
def test_weights_are_those_of_one_process(made: Path, how: str, recipe: str) -> None:
    found, wanted = (
        load_tensors(made / name / "dictionaries" / recipe / "weights.safetensors")
        for name in (how, "one")
    )
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() < 1e-5, name


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_the_log_and_the_scores_are_too(made: Path, how: str) -> None:
    found, wanted = (
        [json.loads(line) for line in (made / name / "metrics.jsonl").read_text().splitlines()]
        for name in (how, "one")
    )
    assert [line["trainee"] for line in found] == [line["trainee"] for line in wanted]
    for line, expected in zip(found, wanted, strict=True):
        numbers = {key: value for key, value in expected.items() if key != "trainee"}
        assert {key: line[key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    scores, expected = (
        json.loads((made / name / "scores.json").read_text())["trained"] for name in (how, "one")
    )
    for recipe in SETTINGS.recipe:
        value = expected[recipe]["kl"]["value"]
        assert scores[recipe]["kl"]["value"] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
def test_the_record_says_how_many_shared_the_work(made: Path) -> None:
    runs = {name: json.loads((made / name / "run.json").read_text()) for name in ("one", *HOWS)}
    assert "processes" not in runs["one"]
    assert runs["rows"]["processes"] == {"count": 2, "shards": 1}
    assert runs["latents"]["processes"] == {"count": 2, "shards": 2}
    assert runs["rows"]["settings"] == runs["one"]["settings"] == runs["latents"]["settings"]
    assert not list(made.glob(".*")), "nothing unfinished is left"
