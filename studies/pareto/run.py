"""Every way to take a place apart, on both fronts, in two networks; see README.md.

    python studies/pareto/run.py PHASE --runs FOLDER [--artifact FOLDER] --store FOLDER

PHASE is wren, transcoders, everything, smollm2, maps-wren or maps-smollm2. FOLDER holds
what `unweave train` made (README.md says how). What is measured stays in the store and is not
measured again; `collect.py` makes numbers.json, the pictures and the tables from it.
"""

import argparse
import json
from pathlib import Path

import torch
from maps import measure_maps

from unweave.pipeline.pareto import ParetoSettings, pareto
from unweave.progress import watching
from unweave.validate.rivals.families import RivalSettings

WREN = {"explain_rows": 96, "heldout_rows": 32, "splice_rows": 24, "choosing_rows": 4, "seed": 0}
PHASES = {
    "wren": (
        ["chosen", "penalised", "e2e"],
        WREN,
        RivalSettings(k=(4, 16, 64), clusters=(64, 1024)),
    ),
    "transcoders": (
        ["skip_transcoder", "transcoder"],
        {**WREN, "baselines": ("neurons", "pca", "svd", "clusters")},
        RivalSettings(k=(4, 16), clusters=(256,)),
    ),
    "everything": (
        [],
        {
            **WREN, "explain_rows": 64, "heldout_rows": 24, "splice_rows": 16,
            "baselines": ("neurons", "pca", "clusters"),
        },
        RivalSettings(k=(16,), clusters=(256,), random_per_dimension=4),
    ),
    "smollm2": (
        ["smol_dicts"],
        {
            "explain_rows": 48, "heldout_rows": 16, "splice_rows": 8, "choosing_rows": 2,
            "dtype": "bfloat16",
        },
        RivalSettings(
            k=(8, 32), clusters=(64, 512), independent=64, components=32,
            random_per_dimension=2,
        ),
    ),
}  # fmt: skip
"""Names of the runs in their folder, settings, and sizes of the rivals."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("phase")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = given.store / given.phase
    if given.phase.startswith("maps-"):
        found = measure_maps(given.phase.removeprefix("maps-"), watching())
        out.mkdir(parents=True, exist_ok=True)
        (out / "maps.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    names, settings, rivals = PHASES[given.phase]
    runs = [given.runs / name for name in names] or [given.artifact]
    pareto(runs, ParetoSettings(**settings, rivals=rivals), out=out, progress=watching())


if __name__ == "__main__":
    main()
