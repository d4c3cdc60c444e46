"""The same training by one process and by many, for `test_pipeline_train_together.py`.

torchrun --nproc-per-node 2 train_in_parallel.py FOLDER
"""

import os
import sys
from pathlib import Path

from unweave.pipeline.train import train_site
from unweave.pipeline.train_settings import TrainSiteSettings

SETTINGS = TrainSiteSettings.model_validate(
    {
        "site": "blocks.1.resid_post", "recipe": "batchtopk,jumprelu-2025-01,e2e-braun",
        "latents": 64, "text": "heldout", "tokens": 6000, "context": 32, "batch": 128,
        "heldout_tokens": 512, "log_every": 5, "seed": 3, "threads": 1,
        "harvest": {"window_tokens": 1120},
    }
)  # fmt: skip
"""35 rows of text to a window: an uneven share for each of two processes."""


def main(folder: Path) -> None:
    rank, world = os.environ["RANK"], os.environ.pop("WORLD_SIZE")
    if rank == "0":
        train_site("wren", SETTINGS, out=folder / "one")
    os.environ["WORLD_SIZE"] = world
    train_site("wren", SETTINGS, out=folder / "rows")
    dealt_out = SETTINGS.model_copy(update={"shards": 2})
    train_site("wren", dealt_out, out=folder / "latents")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
