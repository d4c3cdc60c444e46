"""All of SmolLM2-135M from sparse features: fitted block by block, then tuned together, measured.

    python studies/smollm2/run.py STORE NAME [--only mlp] [--gated] [--start ...] [--joint N]

Cut off and called again it goes on from STORE/NAME. Text: wiki. Writes runs/NAME.json beside this
file; `collect.py` puts the runs together.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from measure import rivals, scores_of

from unweave.activations.window import HarvestSettings
from unweave.activations.workers import Workers
from unweave.artifact.atomic import new_folder, write_json
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import place_of
from unweave.dictionaries.spec import PartSpec
from unweave.pipeline.fitting import part_specs
from unweave.progress import watching
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.checkpoint import Checkpoints
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings

HERE = Path(__file__).parent


def specs_of(subject: Subject, asked: argparse.Namespace) -> list[PartSpec]:
    """Parts of every block; queries and keys get half as many latents as values."""
    k = {"k_mlp": asked.k_mlp, "k_attention": asked.k, "k_query": asked.k, "k_key": asked.k}
    specs = part_specs(subject, latents=4, skip=asked.skip, gated=asked.gated, **k)
    fewer = {"q": 2 * subject.d_model, "k": 2 * subject.d_model}
    if asked.gated:  # three matrices of these are as many numbers as two of the others
        fewer["mlp"] = subject.d_mlp
    chosen = {"all": "q k attn mlp", "attention": "q k attn", "mlp": "mlp"}[asked.only].split()
    kept = [spec for spec in specs if place_of(spec.name).kind in chosen]
    return [
        spec.model_copy(update={"n_latents": fewer.get(place_of(spec.name).kind, spec.n_latents)})
        for spec in kept
    ]


def fitted(subject: Subject, train: torch.Tensor, asked: argparse.Namespace, workers: Workers):
    """Parts after the local stage, made now or found in the store, of this run or of others."""
    if asked.start:
        return {n: p for name in asked.start for n, p in load_parts(asked.store / name).items()}
    folder = asked.store / asked.name / "local-parts"
    if not folder.is_dir():
        parts, log = fit_parts(
            subject, specs_of(subject, asked), train, workers=workers, seed=1,
            settings=LocalSettings(
                lr=asked.lr, pattern_lr=1e-3, batch=512, revive_at=(0.2, 0.45)
            ),
            harvest=HarvestSettings(window_tokens=4096, ahead=False),
            checkpoints=Checkpoints(asked.store / asked.name / "local", seconds=400),
            progress=watching(),
        )  # fmt: skip
        with new_folder(folder) as making:
            save_parts(parts, making)
        write_json(asked.store / asked.name / "local.json", {"cpu": spent(), "log": log})
    return load_parts(folder)


def tuned(parts, subject: Subject, train: torch.Tensor, asked: argparse.Namespace, workers):
    """Parts after the joint stage."""
    folder = asked.store / asked.name / f"joint-{asked.joint}"
    if not folder.is_dir():
        before = spent()
        log = tune_jointly(
            subject, parts, train, workers=workers, seed=asked.seed,
            settings=JointSettings(
                tokens=asked.joint, micro_rows=4, micro_batches=1, lr=asked.joint_lr,
                everything_share=asked.everything,
            ),
            checkpoints=Checkpoints(folder.parent / "tuning", seconds=900),
            progress=watching(),
        )  # fmt: skip
        with new_folder(folder) as making:
            save_parts(parts, making)
        write_json(folder.with_suffix(".json"), {"cpu": spent() - before, "log": log})
    return load_parts(folder)


def spent() -> float:
    """Seconds of processor time of this process."""
    return round(time.process_time(), 1)


def result(asked: argparse.Namespace, parts: dict[str, Part], scores: dict) -> dict:
    """What is kept of a run."""
    own = asked.store / asked.name
    logs = {"local": own / "local.json", "joint": own / f"joint-{asked.joint}.json"}
    seconds = {n: json.loads(p.read_text())["cpu"] for n, p in logs.items() if p.is_file()}
    first = {place_of(name).kind: part.spec for name, part in parts.items()}
    sizes = {kind: {"latents": s.n_latents, "active": s.k} for kind, s in first.items()}
    asked_for = {k: v for k, v in vars(asked).items() if k not in ("store", "out")}
    return {
        "settings": asked_for,
        "parts": sizes,
        "numbers": sum(p.numel() for part in parts.values() for p in part.parameters()),
        "numbers_skip": sum(p.W_skip.numel() for p in parts.values() if p.W_skip is not None),
        "cpu_seconds": seconds | {"this_process": spent()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "scores": scores,
    }


def asked_for() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("name")
    parser.add_argument("--only", choices=("all", "attention", "mlp"), default="all")
    parser.add_argument("--skip", action="store_true")
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--k-mlp", type=int, default=64)
    parser.add_argument("--local", type=int, default=50_000)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--start", nargs="+", help="parts in STORE to start from")
    parser.add_argument("--joint", type=int, default=0)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--joint-lr", type=float, default=7e-4)
    parser.add_argument("--everything", type=float, default=0.75)
    parser.add_argument("--held", type=int, default=4096, help="0: measure nothing")
    parser.add_argument("--single", type=int, default=0)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    return parser.parse_args()


def main() -> None:
    """Fit, tune, measure."""
    asked = asked_for()
    torch.set_num_threads(1)
    subject = load_subject("smollm2-135m")
    text = token_rows(subject, "wiki", tokens=600_000, context=128, seed=0)
    held = text.heldout[: asked.held // 128]
    with Workers(asked.threads) as workers:
        parts = fitted(subject, text.train[: asked.local // 128], asked, workers)
        # What the local stage has not seen: its text is not worth a second visit.
        unseen = text.train[asked.local // 128 :]
        if asked.joint:
            parts = tuned(parts, subject, unseen, asked, workers)
        if not asked.held:
            return
        others = rivals(subject, parts, text.train[:32], workers) if asked.rivals else {}
        scores = scores_of(subject, parts, others, held, asked.single, workers)
    write_json(asked.out / f"{asked.name}-{asked.joint}.json", result(asked, parts, scores))


if __name__ == "__main__":
    main()
