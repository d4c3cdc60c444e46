"""A whole small network from sparse features: every MLP, value, query and key of every block.

    python studies/stories260K/run.py SUBJECT --name NAME [--active 64] [--gated] [--rivals]
        [--local N] [--batch N] [--joint N] [--rows N] [--lr L] [--pattern-every N] [--share S]
        [--tokens N] [--out FOLDER]
    python studies/stories260K/run.py --collect FOLDER

SUBJECT: wren, or a folder with stories260K; text: its own. `--active` latents a layer and token
are shared out over the block's four parts (`SPLITS`). Parts are fitted to their blocks, then tuned
together, as `unweave decompile` does it; both stages are scored on the same held-out rows, with
`--rivals` beside baselines that have as many active. A run writes FOLDER/NAME.json; `--collect`
makes FOLDER/../numbers.json and whole.png of all runs there.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from baselines import rivals_of
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.dictionaries.spec import PartSpec
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject, load_subject, token_rows
from unweave.subject.rows import TokenRows
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import RowScores, Variant, single_scores, splice_scores

HERE = Path(__file__).parent
CONTEXT = 128
HELD = 8192
SINGLE_ROWS = 8
SEEDS = {"text": 0, "local": 1, "joint": 2}
SPLITS = {
    8: (4, 2, 1, 1),
    16: (8, 4, 2, 2),
    32: (18, 7, 4, 3),
    64: (36, 14, 7, 7),
    128: (72, 28, 14, 14),
}
"""Active latents of a layer by the sum: MLP, value, query, key."""


def specs_of(subject: Subject, active: int, *, gated: bool) -> list[PartSpec]:
    """The parts of every block."""
    mlp, value, query, key = SPLITS[active]
    sizes = {"k_mlp": mlp, "k_attention": value, "k_query": query, "k_key": key}
    return part_specs(subject, latents=8, skip=False, gated=gated, **sizes)


def summary(scores: RowScores) -> dict[str, list[float]]:
    """Means and 95 % intervals over rows: CE increase, KL, top-1 agreement."""
    columns = {"ce": scores.ce_increase, "kl": scores.kl, "top1": scores.top1_agreement}
    return {
        name: [round(float(number), 4) for number in mean_interval(column)]
        for name, column in columns.items()
    }


def singles(
    subject: Subject, parts: Mapping[str, Part], held: Tensor, workers: Workers
) -> dict[str, float]:
    """KL of one part at a time, the mean over parts and by kind: far less noisy than the loss."""
    placed = stand_ins(parts.values(), AtStart())
    found = single_scores(subject, placed, held[:SINGLE_ROWS], workers=workers)
    kinds: dict[str, list[float]] = {"all": []}
    for name, scores in found.items():
        for kind in ("all", place_of(name).kind):
            kinds.setdefault(kind, []).append(float(scores.kl.mean()))
    return {kind: round(float(np.mean(values)), 5) for kind, values in kinds.items()}


def measured(
    subject: Subject,
    parts: Mapping[str, Part],
    held: Tensor,
    workers: Workers,
    others: Mapping[str, Variant] | None,
) -> dict:
    """All splice modes of the parts; with their rivals, if given, kinds of parts alone too."""
    placed = stand_ins(parts.values(), AtStart())
    mlps = {n: stand for n, stand in placed.items() if place_of(n).kind == "mlp"}
    rest = {n: stand for n, stand in placed.items() if n not in mlps}
    variants = {
        "propagated": Variant(placed, "propagated"),
        "clean": Variant(placed, "clean"),
    }
    if others is not None:
        variants |= {
            "mlps only": Variant(mlps, "propagated"),
            "attention only": Variant(rest, "propagated"),
            **others,
        }
    scores = splice_scores(subject, variants, held, workers=workers)
    found = {name: summary(one) for name, one in scores.items()}
    original = float(np.mean(scores["propagated"].ce_original))
    single = singles(subject, parts, held, workers)
    return {"ce_original": round(original, 4), "single_kl": single} | found


def fitted(
    subject: Subject,
    specs: list[PartSpec],
    rows: TokenRows,
    workers: Workers,
    asked: argparse.Namespace,
) -> tuple[dict[str, Part], float]:
    """Parts after the local stage and its CPU seconds; kept for runs that differ in the other."""
    folder = asked.out / "local" / f"{asked.name}.{asked.local}"
    clock = folder / "seconds.json"
    if not clock.is_file():
        begun = time.process_time()
        parts, _ = fit_parts(
            subject,
            specs,
            rows.train[: asked.local // CONTEXT],
            workers=workers,
            seed=SEEDS["local"],
            settings=LocalSettings(lr=5e-3, batch=asked.batch),
        )
        save_parts(parts, folder)
        clock.write_text(json.dumps(time.process_time() - begun))
    return load_parts(folder), json.loads(clock.read_text())


def run(asked: argparse.Namespace) -> dict:
    """One run, from text to scores."""
    subject = load_subject(asked.subject, dtype="float32")
    rows = token_rows(subject, "self", tokens=asked.tokens, context=CONTEXT, seed=SEEDS["text"])
    held = rows.heldout[: HELD // CONTEXT]
    specs = specs_of(subject, asked.active, gated=asked.gated)
    settings = JointSettings(
        tokens=asked.joint, micro_rows=asked.rows, micro_batches=1, lr=asked.lr,
        everything_share=asked.share, pattern_every=asked.pattern_every,
    )  # fmt: skip
    with Workers(1) as workers:
        parts, local_seconds = fitted(subject, specs, rows, workers, asked)
        before = measured(subject, parts, held, workers, None)
        begun = time.process_time()
        log = tune_jointly(
            subject, parts, rows.train, workers=workers, seed=SEEDS["joint"], settings=settings
        )
        joint_seconds = time.process_time() - begun
        save_parts(parts, asked.out / "parts" / asked.name)
        others = rivals_of(subject, parts, specs, rows.train, workers) if asked.rivals else None
        after = measured(subject, parts, held, workers, others)
    return {
        "name": asked.name,
        "active": {"all": asked.active, "split": SPLITS[asked.active]},
        "gated": asked.gated,
        "latents": {spec.name: spec.n_latents for spec in specs[:4]},
        "tokens": {"local": asked.local, "joint": asked.joint, "held": held.numel()},
        "batch": asked.batch,
        "joint": settings.model_dump(),
        "cpu_seconds": {"local": round(local_seconds), "joint": round(joint_seconds)},
        "joint_kl": [round(float(line["kl"]), 4) for line in log[:: max(1, len(log) // 20)]],
        "before": before,
        "after": after,
    }


def main() -> None:
    """Read the command line and do one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", nargs="?")
    parser.add_argument("--name")
    parser.add_argument("--active", type=int, default=64, choices=list(SPLITS))
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--local", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--joint", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--pattern-every", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--share", type=float, default=0.6)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--collect", type=Path)
    asked = parser.parse_args()
    if asked.collect:
        from drawing import collect

        collect(asked.collect)
        return
    torch.set_num_threads(1)
    asked.out.mkdir(exist_ok=True, parents=True)
    (asked.out / f"{asked.name}.json").write_text(json.dumps(run(asked), indent=1) + "\n")


if __name__ == "__main__":
    main()
