"""Do changed latents do what was predicted, and are descriptions causes? On wren.

    OMP_NUM_THREADS=1 python studies/interventions/run.py DICTIONARIES [STAGE ...]
    OMP_NUM_THREADS=1 python studies/interventions/run.py ARTIFACT artifact

DICTIONARIES is a folder with `dictionaries/NAME` trained at one place. Stages: `interventions`,
`scrubbing`, `aggregation`, `modes` (other ways to mask). `artifact` unites explanations in
all parts of a decompiled network at once. Writes numbers.json beside this file after every cell
and skips cells that are there already.
"""

import json
import sys
import time
from pathlib import Path

import torch

from unweave.dictionaries.formats import load_foreign
from unweave.subject import Subject, load_subject
from unweave.validate.interventions.aggregation import AggregationSettings, aggregate
from unweave.validate.interventions.aggregation_protocol import aggregation
from unweave.validate.interventions.masking import MaskingSettings
from unweave.validate.interventions.protocol import heldout, interventions, scrubbing
from unweave.validate.placed import Placed, placed
from unweave.validate.protocols.protocol import Bench

HERE = Path(__file__).parent
RUNS = {"interventions": interventions, "scrubbing": scrubbing, "aggregation": aggregation}
SEEDS = range(3)
MODES = {
    "strict": MaskingSettings(),
    "lenient": MaskingSettings(strict=False),
    "encode": MaskingSettings(where="encode"),
    "mean": MaskingSettings(fill="mean"),
    "no error": MaskingSettings(keep_error=False, bound=1.0),
}


def main(folder: Path, stages: list[str], out: Path) -> None:
    torch.set_num_threads(1)
    subject = load_subject("wren")
    found = json.loads(out.read_text()) if out.exists() else {}
    for stage in [each for each in stages if each in RUNS]:
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
    parts = {
        path.name: placed(path.name, next(iter(load_foreign(path).values())))
        for path in sorted((folder / "dictionaries").iterdir())
    }
    work = {
        f"modes/{name}/{mode}": ([one], settings)
        for name, one in parts.items()
        for mode, settings in MODES.items()
        if "modes" in stages
    }
    order = sorted(parts.values(), key=lambda one: (one.name[:2], "mlp" in one.name))
    work |= {
        f"artifact/{mode}": (order, MODES[mode])
        for mode in ("strict", "lenient")
        if "artifact" in stages
    }
    for key, (standing, masking) in work.items():
        if key not in found:
            found[key] = united(subject, standing, masking)
            out.write_text(json.dumps(found, indent=1) + "\n")


def united(subject: Subject, standing: list[Placed], masking: MaskingSettings) -> dict:
    """Unions on 64 held-out rows."""
    bench = Bench(subject, standing[0], HERE, text="heldout", share=0.25)
    start, settings = time.time(), AggregationSettings(masking=masking, asked=32)
    found = aggregate(subject, standing, heldout(bench)[:64], settings)
    print([one.name for one in standing][:3], masking, round(time.time() - start, 1), flush=True)
    return json.loads(json.dumps(found._asdict()))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or list(RUNS), HERE / "numbers.json")
