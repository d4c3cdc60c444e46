"""What `test_training_parallel.py` compares: runs of one process and of several, by name.

    python parallel_steps.py FOLDER RUN... [--checked]

Started as `torchrun` does it. Process 0 leaves `RUN.json`, each one `RUN-rankN.safetensors`,
in FOLDER.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from jaxtyping import install_import_hook
from torch import Tensor

if __name__ == "__main__" and "--checked" in sys.argv:  # in the tests, conftest.py has done so
    install_import_hook(
        "unweave", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )

from unweave.artifact.tensors import save_tensors
from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.gated import Gated
from unweave.dictionaries.activation.jumprelu import JumpReLU
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import AbsTopK, TopK
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.encoder.switch import Switch
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.checkpoint import Metrics
from unweave.training.dead import AuxK, DeadLatents, Resample
from unweave.training.parallel import trainee as shared
from unweave.training.parallel.answers import StepAnswers
from unweave.training.parallel.grid import Grid, grid_of, launched, together
from unweave.training.parallel.run import train_together
from unweave.training.parallel.sources import VectorShare, VectorShares
from unweave.training.parallel.trainee import SharedTrainee
from unweave.training.penalties.l0 import L0, PreActivation
from unweave.training.penalties.pointwise import L1, Lp
from unweave.training.penalties.weighted import Penalty
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train

D, LATENTS, BATCH, STEPS = 12, 40, 64, 24
KILLED_AT = 13
LOOP = TrainSettings(log_every=4, checkpoint_seconds=0)
DEAD = DeadLatents(silent_share=0.02, auxk=AuxK(k=4), resample=Resample(at=(0.4, 0.7)))

KINDS: dict[str, tuple[Any, dict, dict]] = {
    "topk": (TopK(k=3), {"skip": True}, {"dead": DEAD}),
    "abstopk": (AbsTopK(k=3), {"decoder": "normalised"}, {}),
    "batchtopk": (
        BatchTopK(k=3),
        {"nesting": (10, LATENTS), "pre_bias": True},
        {"k_from": 4.0, "dead": DEAD},
    ),
    "jumprelu": (
        JumpReLU(threshold=0.1, bandwidth=0.5, gradient_to="all"),
        {"pre_bias": True, "decoder": "free"},
        {
            "penalties": (
                Penalty(form=L0(target=4.0), weight=0.5, warmup=0.5),
                Penalty(form=PreActivation(), weight=1e-2),
            )
        },
    ),
    "few": (
        JumpReLU(threshold=1.5, bandwidth=0.5),
        {},
        # Restarts leave Adam gradients of rounding size here, of which it makes steps of 1e-9.
        {
            "penalties": (Penalty(form=L0(), weight=0.1),),
            "dead": DeadLatents(silent_share=0.02, auxk=AuxK(k=4)),
        },
    ),
    "steered": (
        ReLU(),
        {"decoder": "free", "nesting": (10, LATENTS)},
        {"penalties": (Penalty(form=L1(), weight=0.3, warmup=0.1, target_l0=6.0, gain=0.1),)},
    ),
    "annealed": (
        Gated(),
        {"pre_bias": True},
        {"penalties": (Penalty(form=Lp(p=0.2, anneal_from=0.2), weight=0.3),)},
    ),
    "switch": (TopK(k=3), {"encoder": Switch(experts=4)}, {"dead": DEAD}),
}
DEALT_OUT = ("topk", "abstopk", "batchtopk", "jumprelu", "few", "steered")
"""Those whose latents can be shared out."""


def vectors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.relu(torch.randn(1000, 24, generator=generator, dtype=torch.float64) - 1)
    rows += 1e-3  # a row of nothing would tie all latents
    return {"s": rows @ torch.randn(24, D, generator=generator, dtype=torch.float64)}


def source() -> ArraySource:
    return ArraySource(vectors(), batch=BATCH, steps=STEPS)


def parts(kind: str) -> tuple[dict[str, Dictionary], TraineeSettings]:
    activation, spec, settings = KINDS[kind]
    dictionary = Dictionary(autoencoder("s", D, LATENTS, activation, **spec)).double()
    return {"d": dictionary}, TraineeSettings(lr=1e-2, **settings)


def by_one(kind: str) -> tuple[Metrics, dict[str, Tensor]]:
    """The run of one process: its log and its weights."""
    dictionaries, settings = parts(kind)
    trainee = Trainee(dictionaries, settings, steps=STEPS, batch=BATCH, seed=5)
    return train([trainee], source(), settings=LOOP), trainee.dictionaries["d"].state_dict()


class Uneven(VectorShares):
    """Rows dealt out at random; in every third step process 0 gets all of them."""

    def at(self, step: int) -> VectorShare:
        drawn = torch.randperm(BATCH, generator=torch.Generator().manual_seed(step))
        cut = BATCH if step % 3 == 0 else 7 + step
        places = drawn[:cut] if self._rows.rank == 0 else drawn[cut:]
        return VectorShare({"s": self._source.at(step).vectors["s"][places]}, places, BATCH)


class Cut:
    """A source that dies, or kills its process, when a step is asked for."""

    steps, batch = STEPS, BATCH

    def __init__(self, grid: Grid, *, kill: bool) -> None:
        self._grid, self._kill, self._source = grid, kill, source()

    def at(self, step: int) -> VectorBatch:
        if step == KILLED_AT and not self._kill:
            raise KeyboardInterrupt
        if step == KILLED_AT and not self._grid.first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source.at(step)


def run(name: str, folder: Path, grid: Grid) -> None:
    """A run called MODE:KIND[:HOW]."""
    mode, kind, how = [*name.split(":"), ""][:3]
    dictionaries, settings = parts(kind)
    trainee = SharedTrainee(dictionaries, settings, grid=grid, steps=STEPS, batch=BATCH, seed=5)
    where = folder / f"{mode}-{kind}-run" if how in ("cut", "kill", "resume") else None
    taken: Any = Uneven(source(), grid.rows) if how == "uneven" else source()
    if how in ("cut", "kill"):
        taken = Cut(grid, kill=how == "kill")
    exchange, add_up = shared.add_up_gradients_, StepAnswers.add_up
    if how == "apart":
        shared.add_up_gradients_ = lambda *_: None
        StepAnswers.add_up = lambda _, written: written
    try:
        begin = source().at(0)
        log = train_together([trainee], taken, grid, begin=begin, settings=LOOP, folder=where)
    except KeyboardInterrupt:
        return
    finally:
        shared.add_up_gradients_, StepAnswers.add_up = exchange, add_up
    file = name.replace(":", "-")
    state = shared.gathered(trainee)["d"].state_dict()
    save_tensors(folder / f"{file}-rank{grid.everyone.rank}.safetensors", state)
    if grid.first:
        (folder / f"{file}.json").write_text(json.dumps({"log": log, "sent": grid.sent}))


def main(folder: Path, names: list[str]) -> None:
    with together() as rows:
        shards = {"latents": launched(), "both": 2}
        for name in names:
            mode = name.split(":")[0]
            grid = rows if mode == "rows" else grid_of(launched(), shards[mode], rows.device)
            run(name, folder, grid)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), [name for name in sys.argv[2:] if ":" in name])
