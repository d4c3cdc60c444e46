"""Do changed latents do what was predicted, and are descriptions causes? On wren.

    OMP_NUM_THREADS=1 python studies/interventions/run.py DICTIONARIES [STAGE ...]

DICTIONARIES is a folder with `dictionaries/NAME` trained at one place. Stages: `interventions`,
`scrubbing`, `aggregation`. Writes numbers.json beside this file after every cell and skips the
cells that are there already.
"""

import json
import sys
import time
from pathlib import Path

import torch

from unweave.dictionaries.formats import load_foreign
from unweave.subject import load_subject
from unweave.validate.interventions.protocol import interventions, scrubbing
from unweave.validate.placed import placed
from unweave.validate.protocols.protocol import Bench

try:
    from unweave.validate.interventions.aggregation_protocol import aggregation
except ImportError:
    aggregation = None

HERE = Path(__file__).parent
RUNS = {"interventions": interventions, "scrubbing": scrubbing, "aggregation": aggregation}
SEEDS = range(3)


def main(folder: Path, stages: list[str], out: Path) -> None:
    torch.set_num_threads(1)
    subject = load_subject("wren")
    found = json.loads(out.read_text()) if out.exists() else {}
    for stage in stages:
        for path in sorted((folder / "dictionaries").iterdir()):
            one = placed(path.name, next(iter(load_foreign(path).values())))
            for seed in SEEDS:
                key = f"{stage}/{path.name}/{seed}"
                if key in found:
                    continue
                start = time.time()
                bench = Bench(subject, one, HERE, text="heldout", share=0.5, seed=seed)
                outcome = RUNS[stage](bench)
                found[key] = outcome.model_dump(mode="json")
                out.write_text(json.dumps(found, indent=1) + "\n")
                print(key, round(time.time() - start, 1), flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or list(RUNS), HERE / "numbers.json")
