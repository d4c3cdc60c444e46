"""Effects foreseen and descriptions scrubbed in SmolLM2-135M, with fewer latents and rows.

    OMP_NUM_THREADS=1 python studies/interventions/smollm2.py DICTIONARIES [STAGE ...]

DICTIONARIES is a folder with `dictionaries/NAME` trained at blocks.14.resid_post. Stages:
`scrubbing` (descriptions from 256 rows, resampled on 48 others), `gradient` (24 latents, 4 rows
each: zeroed, clamped, patched), `direct` (16 latents, zeroed, by what they write to the logits),
`aggregation` (explanations of 48 rows united, 16 asked). Writes smollm2.json beside this file after
every cell and skips cells that are there already.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unweave.describe.describe import describe_part
from unweave.describe.subject_tokens import vocabulary_of
from unweave.dictionaries.formats import load_foreign
from unweave.progress import Lines
from unweave.subject import Subject, load_subject, token_rows
from unweave.validate.bootstrap import BootstrapSettings
from unweave.validate.interventions.aggregation import AggregationSettings, aggregate
from unweave.validate.interventions.latents import Intervention
from unweave.validate.interventions.measuring import InterventionSettings, intervene
from unweave.validate.interventions.predicting import PredictSettings
from unweave.validate.interventions.scrub_claims import scrub_claims
from unweave.validate.numbers.collecting import collect_codes, evidence_of
from unweave.validate.placed import Placed, placed

HERE = Path(__file__).parent
CONTEXT = 64
EXPLAIN, TEST, ACTED = 256, 48, 64
"""Rows that descriptions are made from, that they are tested on, and of the interventions."""
BOOTSTRAP = BootstrapSettings(resamples=200)
GRADIENT = InterventionSettings(
    acts=tuple(Intervention(kind=kind) for kind in ("zero", "clamp", "patch")),
    latents=24, rows=4, predict=PredictSettings(predictors=("gradient",)), bootstrap=BOOTSTRAP,
)  # fmt: skip
DIRECT = InterventionSettings(
    acts=(Intervention(kind="zero"),), latents=16, rows=4,
    predict=PredictSettings(predictors=("direct",)), bootstrap=BOOTSTRAP,
)  # fmt: skip
UNIONS = AggregationSettings(unions=(1, 2, 8, 48), asked=16)
LINES = Lines(every=60)
Found = dict[str, object]


def scrubbing(subject: Subject, one: Placed, rows: Tensor) -> Found:
    """By each latent's own description, and by that of another."""
    rows, vocabulary = rows[: EXPLAIN + TEST], vocabulary_of(subject)
    code = collect_codes(subject, [one], rows, progress=LINES)[one.name]
    claims = [
        said.claim for said in describe_part(evidence_of(one.name, code, rows, EXPLAIN, vocabulary))
    ]
    found = scrub_claims(subject, one, claims, vocabulary, rows[EXPLAIN:])
    return {
        "own": dict(zip(("ce", "kl"), found.own, strict=True)),
        "shuffled": dict(zip(("ce", "kl"), found.shuffled, strict=True)),
        "agreeing": found.agreeing, "alone": found.alone,
    }  # fmt: skip


def acting(settings: InterventionSettings, subject: Subject, one: Placed, rows: Tensor) -> Found:
    """Predicted and measured changes of the log-probability of the true next tokens."""
    told: Found = {}
    for act, effects in intervene(subject, one, rows[-ACTED:], settings, progress=LINES).items():
        told[act] = {
            "pairs": len(effects.measured),
            "mean_change": float(effects.measured.mean()),
            **{
                f"{how} {whose}": each._asdict()
                for (how, whose), each in effects.agreements(settings.bootstrap).items()
            },
        }
    return told


def aggregation(subject: Subject, one: Placed, rows: Tensor) -> Found:
    """What unions of explanations cost."""
    return aggregate(
        subject, [one], rows[EXPLAIN : EXPLAIN + TEST], UNIONS, progress=LINES
    )._asdict()


STAGES: Mapping[str, Callable[[Subject, Placed, Tensor], Found]] = {
    "scrubbing": scrubbing, "gradient": partial(acting, GRADIENT),
    "direct": partial(acting, DIRECT), "aggregation": aggregation,
}  # fmt: skip


def main(folder: Path, stages: list[str], out: Path) -> None:
    torch.set_num_threads(1)
    subject = load_subject("smollm2-135m", dtype="float32")
    # The rows that the dictionaries' training left out, cut short.
    rows = token_rows(subject, "wiki", tokens=800_000, context=128, seed=0).heldout
    rows = rows[: EXPLAIN + TEST + ACTED, :CONTEXT].contiguous()
    found = json.loads(out.read_text()) if out.exists() else {}
    for stage in stages:
        for path in sorted((folder / "dictionaries").iterdir()):
            key = f"{stage}/{path.name}"
            if key in found:
                continue
            start = time.time()
            one = placed(path.name, load_foreign(path)[path.name].eval())
            told = STAGES[stage](subject, one, rows)
            found[key] = json.loads(json.dumps(told), parse_float=_short)
            out.write_text(json.dumps(found, indent=1) + "\n")
            print(key, round(time.time() - start, 1), flush=True)


def _short(number: str) -> float:
    return float(f"{float(number):.5g}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or list(STAGES), HERE / "smollm2.json")
