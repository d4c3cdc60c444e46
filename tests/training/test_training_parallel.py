"""Many processes: what they make together is what one makes, and what is cut off goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parallel_steps import DEALT_OUT, KINDS, by_one, parts, source
from torch import Tensor

from unweave.artifact.tensors import load_tensors
from unweave.errors import UserError
from unweave.training.checkpoint import Metrics
from unweave.training.parallel.grid import ALONE, together
from unweave.training.parallel.group import Group
from unweave.training.parallel.run import train_together
from unweave.training.parallel.sharded import ShardedDictionary
from unweave.training.parallel.sources import VectorShares
from unweave.training.parallel.threshold import nth_largest
from unweave.training.parallel.trainee import SharedTrainee, gathered

SCRIPT = Path(__file__).parent / "parallel_steps.py"
TOGETHER = [f"rows:{kind}" for kind in KINDS] + [f"latents:{kind}" for kind in DEALT_OUT]
MORE = ["rows:batchtopk:uneven", "rows:few:uneven", "rows:topk:apart", "latents:topk:apart"]


def launch(*arguments: str, processes: int = 2) -> tuple[list[int], str]:
    """Start the script in several processes, as torchrun would; how they ended, what they said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            env={**os.environ, **{k: str(v) for k, v in fixed.items()}}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], "\n".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: those that end, then one that is killed; then what goes on from there."""
    folder = tmp_path_factory.mktemp("parallel")
    codes, said = launch(str(folder), *TOGETHER, *MORE, "rows:batchtopk:cut", "latents:topk:kill")
    assert (folder / "latents-topk-run").is_dir(), said
    assert codes[1] == -signal.SIGKILL
    assert codes[0] not in (0, -signal.SIGKILL), "the other notices"
    shutil.copytree(folder / "latents-topk-run", folder / "rows-topk-run")
    resumed = ["latents:topk:resume", "rows:topk:resume", "rows:batchtopk:resume"]
    codes, said = launch(str(folder), *resumed, "--checked")
    assert codes == [0, 0], said
    return folder


def found(folder: Path, name: str, rank: int = 0) -> tuple[Metrics, dict[str, Tensor]]:
    file = name.replace(":", "-")
    state = load_tensors(folder / f"{file}-rank{rank}.safetensors")
    return json.loads((folder / f"{file}.json").read_text())["log"], state


def apart(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("name", [*TOGETHER, "rows:batchtopk:uneven", "rows:few:uneven"])
def test_two_processes_make_what_one_makes(folder: Path, name: str) -> None:
    log, state = found(folder, name)
    expected_log, expected = by_one(name.split(":")[1])
    assert apart(state, expected) < 1e-9
    assert len(log) == len(expected_log)
    for line, wanted in zip(log, expected_log, strict=True):
        assert line.pop("trainee") == wanted.pop("trainee")
        assert line == pytest.approx(wanted, rel=1e-8, abs=1e-9)
    assert equal(state, found(folder, name, rank=1)[1]), "both hold the same bits"


@pytest.mark.parametrize("name", ["rows:topk:apart", "latents:topk:apart"])
def test_without_the_exchange_it_is_something_else(folder: Path, name: str) -> None:
    assert apart(found(folder, name)[1], by_one("topk")[1]) > 1e-2


def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(folder: Path) -> None:
    assert (folder / "rows-batchtopk-run" / "checkpoints").is_dir()
    log, state = found(folder, "rows:batchtopk:resume")
    whole_log, whole = found(folder, "rows:batchtopk")
    assert equal(state, whole)
    assert log == whole_log


def test_a_killed_shard_leaves_what_the_run_goes_on_from(folder: Path) -> None:
    files = sorted(path.name for path in (folder / "latents-topk-run/checkpoints/a").iterdir())
    assert files == ["dictionary-0of2.safetensors", "dictionary-1of2.safetensors", "state.json"]
    assert not (folder / "latents-topk-kill.json").exists()
    log, state = found(folder, "latents:topk:resume")
    whole_log, whole = found(folder, "latents:topk")
    assert equal(state, whole)
    assert log == whole_log


def test_shards_go_on_in_processes_that_share_rows(folder: Path) -> None:
    assert apart(found(folder, "rows:topk:resume")[1], found(folder, "latents:topk")[1]) < 1e-9


def test_one_process_alone_is_the_ordinary_trainer(tmp_path: Path) -> None:
    dictionaries, settings = parts("topk")
    with together() as grid:
        assert grid is ALONE
        trainee = SharedTrainee(dictionaries, settings, grid=grid, steps=24, batch=64, seed=5)
        alone = VectorShares(source(), grid.rows)
        train_together([trainee], alone, grid, begin=alone.first(), folder=tmp_path)
    assert equal(gathered(trainee)["d"].state_dict(), by_one("topk")[1])
    assert (tmp_path / "metrics.jsonl").is_file()
    assert grid.sent == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nth_largest_is_found_by_counting(dtype: torch.dtype) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype) * 1e-3
    values[100:120] = values[50]
    ranked = values.sort(descending=True).values
    for n in (1, 2, 17, 500, 1000):
        assert nth_largest(values, n, Group()).tolist() == [ranked[n - 1]]


class Two(Group):
    """One of two processes, for what is refused before anything is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 2


@pytest.mark.parametrize(
    ("kind", "why"), [("switch", "cannot be dealt out"), ("annealed", "gated")]
)
def test_what_cannot_be_dealt_out_is_refused(kind: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        ShardedDictionary(parts(kind)[0]["d"], Two())


def test_a_grid_that_does_not_come_out_is_refused() -> None:
    with pytest.raises(UserError, match="torchrun"), together(shards=3):
        pass
