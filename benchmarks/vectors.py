"""The vectors everybody trains on, made once into a folder as plain float32 rows.

`planted`: `unweave.validate.worlds.peers_workload`, 4,096 unit features of which 20 are active.
`real`: what SmolLM2-135M holds after layer 10 on Wikipedia introductions, position 0 of every row
left out, scaled to a mean norm of sqrt(width) because not every trainer scales by itself. The last
rows are held out: planted ones are drawn from the same world, real ones are of other documents.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.crew import HELDOUT
from unweave.activations.gather import gather
from unweave.activations.workers import Workers
from unweave.artifact.atomic import new_file
from unweave.errors import UserError
from unweave.subject import fetch_subject, fetch_text, load_subject, token_rows
from unweave.validate.worlds.peers_workload import peers_workload

WORLD, DATA, TEXT = 15, 16, 17
"""Seeds; learners have another, and the recipes were chosen on other draws."""
WIDTH, CONTEXT, SITE = 576, 128, "blocks.10.resid_post"
ROWS = {"planted": 1_024_000, "real": 300_000}


def vectors(kind: str, work: Path) -> Path:
    """The file of a workload's vectors; made if it is not there yet."""
    path = work / f"{kind}-{ROWS[kind]}.f32"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial, partial.open("wb") as file:
            for rows in _planted() if kind == "planted" else _real():
                file.write(np.ascontiguousarray(rows.numpy(), np.float32))
    return path


def _planted() -> Iterator[torch.Tensor]:
    world, total = peers_workload(seed=WORLD), ROWS["planted"] + HELDOUT
    for start in range(0, total, 65_536):
        yield world.draw(min(65_536, total - start), seed=DATA, start=start)[0]


def _real() -> Iterator[torch.Tensor]:
    fetch_subject("smollm2-135m")
    fetch_text("wiki")
    subject = load_subject("smollm2-135m")
    total = ROWS["real"] + HELDOUT
    share = 1.2 * HELDOUT / total  # a little more than needed, as rows are cut whole
    tokens = int(1.02 * total * CONTEXT / (CONTEXT - 1))
    rows = token_rows(
        subject, "wiki", tokens=tokens, context=CONTEXT, seed=TEXT, heldout_share=share
    )
    with Workers(1) as workers:
        train, heldout = (
            gather(subject, part, SITE, workers=workers, seed=TEXT)[:wanted]
            for part, wanted in ((rows.train, ROWS["real"]), (rows.heldout, HELDOUT))
        )
    if len(train) < ROWS["real"] or len(heldout) < HELDOUT:
        raise UserError(f"The text wiki gave only {len(train)} + {len(heldout)} vectors")
    scale = WIDTH**0.5 / float(train.norm(dim=1).mean())
    yield train.mul_(scale)
    yield heldout.mul_(scale)
