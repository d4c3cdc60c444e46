"""How few edges a decompiled network of stories260K needs.

    python studies/sparse_edges/run.py fit STORIES260K WORK
    python studies/sparse_edges/run.py train STORIES260K WORK FROM TO [--share S] [--mask HOW]
    python studies/sparse_edges/run.py naive STORIES260K WORK FROM
    python studies/sparse_edges/run.py collect STORIES260K WORK

`train` takes the network WORK/FROM and trains it into WORK/TO. Without --share no edge is cut;
with it edges are cut to that share, by HOW: `gradual` while training; `once` before training;
`random` and `shuffled` are controls of the same size. `naive` cuts and does not train. Each run
appends lines to WORK/lines.jsonl; `collect` makes numbers.json and the picture of them.
"""

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from unweave.activations.workers import Workers
from unweave.artifact.tensors import load_tensors, save_tensors
from unweave.decompile.sparse.edges import EdgeNetwork
from unweave.decompile.sparse.factors import factors_of
from unweave.decompile.sparse.stored import SparseEdgeNetwork
from unweave.decompile.sparse.training import EdgeTraining, train_edges
from unweave.decompile.sparse.uses import measured_uses
from unweave.pipeline.fitting import part_specs
from unweave.progress import QUIET
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.checkpoint import Metrics
from unweave.training.edges.choosing import keep_highest, keep_random, keep_shuffled
from unweave.training.edges.schedule import PruningSchedule
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.local import LocalSettings
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import compare_logits, stack

HERE = Path(__file__).parent
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
HELD = 64
"""Held-out rows of 128 tokens."""


def rows_of(work: Path) -> dict[str, Tensor]:
    """The text, train and held out."""
    return load_tensors(work / "text.safetensors")


def fit(subject: Subject, work: Path, asked: argparse.Namespace) -> None:
    """Parts for everything, 14 + 7 + 7 + 36 active a layer, MLPs gated, fitted block by block."""
    rows = token_rows(subject, "self", tokens=2_000_000, context=128, seed=0)
    save_tensors(work / "text.safetensors", {"train": rows.train, "heldout": rows.heldout})
    specs = part_specs(
        subject, latents=8, k_mlp=36, k_attention=14, k_query=7, k_key=7, skip=False, gated=True
    )
    with Workers(1) as workers:
        parts, _ = fit_parts(
            subject, specs, rows.train[: 900_000 // 128], workers=workers, seed=1,
            settings=LocalSettings(lr=5e-3, batch=512),
        )  # fmt: skip
    save_parts(parts, work / "parts")


def scored(subject: Subject, network: EdgeNetwork, held: Tensor) -> dict[str, object]:
    """CE increase with its interval over rows, KL, same top token, edges."""
    found = []
    with torch.no_grad():
        for group in held.split(8):
            trace = network.trace(group)
            found.append(compare_logits(subject.run(group).logits, trace.logits, group))
    scores = stack(found)
    rise = mean_interval(scores.ce_increase)
    return {
        "edges": network.edges,
        "share": round(network.edges / network.entries, 5),
        "ce_original": round(float(scores.ce_original.mean()), 4),
        "ce_increase": round(rise.value, 4),
        "interval": [round(rise.low, 4), round(rise.high, 4)],
        "kl": round(float(scores.kl.mean()), 4),
        "top1": round(float(scores.top1_agreement.mean()), 4),
    }


def line(work: Path, **what: object) -> None:
    """Append a line of results, with the seconds of the processor so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    what["cpu_seconds"] = round(used.ru_utime + used.ru_stime)
    print(json.dumps(what), flush=True)
    with (work / "lines.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


def network_of(subject: Subject, work: Path, name: str) -> EdgeNetwork:
    """`start` is what the parts say; others are what `train` has made."""
    if name == "start":
        return factors_of(subject, load_parts(work / "parts"))
    return SparseEdgeNetwork.load(work / name).tables()


def mask(network: EdgeNetwork, rows: Tensor, how: str, share: float) -> None:
    """Cut to a share of all edges before any training."""
    scores = measured_uses(network, rows[-96:], elsewhere=0.1, seed=0)
    masks = keep_highest(scores, round(share * network.entries))
    controls: dict[str, Callable] = {"random": keep_random, "shuffled": keep_shuffled}
    network.keep(controls[how](masks, seed=3) if how in controls else masks)


def train(subject: Subject, work: Path, asked: argparse.Namespace) -> None:
    """One network from another."""
    rows = rows_of(work)
    network = network_of(subject, work, asked.source)
    begun, pruning = network.edges / network.entries, None
    if asked.share and asked.mask == "gradual":
        pruning = PruningSchedule(start=begun, final=asked.share)
    elif asked.share:
        mask(network, rows["train"], asked.mask, asked.share)
    reference = load_parts(work / "parts")
    settings = EdgeTraining(
        tokens=asked.tokens, lr=asked.lr, match_weight=asked.match, pruning=pruning
    )

    def say(log: Metrics) -> None:
        if len(log) % 10 == 0:
            kl, gap = (sum(float(x[what]) for x in log[-10:]) / 10 for what in ("kl", "gap"))
            print(len(log), log[-1]["edges"], f"kl {kl:.3f} gap {gap:.3f}", flush=True)

    log = train_edges(
        network, subject, reference, rows["train"], seed=asked.seed, settings=settings,
        at_step=say, progress=QUIET,
    )  # fmt: skip
    (work / f"{asked.target}.log.json").write_text(json.dumps(log))
    SparseEdgeNetwork.of(network).save(work / asked.target)
    line(
        work, run=asked.target, source=asked.source, mask=asked.mask if asked.share else "none",
        tokens=asked.tokens, lr=asked.lr, gap=round(sum(x["gap"] for x in log[-20:]) / 20, 4),
        **scored(subject, network, rows["heldout"][:HELD]),
    )  # fmt: skip


def naive(subject: Subject, work: Path, asked: argparse.Namespace) -> None:
    """Cut without training: by use, and as many drawn blindly."""
    rows = rows_of(work)
    whole = network_of(subject, work, asked.source)
    held = rows["heldout"][:HELD]
    line(work, run=f"{asked.source}/naive", mask="none", **scored(subject, whole, held))
    uses = measured_uses(whole, rows["train"][-96:], elsewhere=0.1, seed=0)
    for share in asked.shares:
        masks = keep_highest(uses, round(share * whole.entries))
        network = whole.copy()
        network.keep(masks)
        line(work, run=f"{asked.source}/naive", mask="once", **scored(subject, network, held))
        if share in (0.1, 0.5):
            network = whole.copy()
            network.keep(keep_random(masks, seed=3))
            line(work, run=f"{asked.source}/naive", mask="random", **scored(subject, network, held))


def collect(work: Path) -> None:
    """numbers.json: the last line of each run, kind of mask and share."""
    found = {}
    for text in (work / "lines.jsonl").read_text().splitlines():
        one = json.loads(text)
        key = (one["run"], one.get("mask"), one.get("share"), one.get("edges_of"))
        found["/".join(str(each) for each in key if each is not None)] = one
    (HERE / "numbers.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Read the command line and do one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["fit", "train", "naive", "collect"])
    parser.add_argument("subject")
    parser.add_argument("work", type=Path)
    parser.add_argument("source", nargs="?", default="start")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--share", type=float)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    parser.add_argument("--mask", default="gradual")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--match", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    if asked.what == "collect":
        collect(asked.work)
        return
    subject = load_subject(asked.subject, dtype="float32")
    runs = {"fit": fit, "train": train, "naive": naive}
    runs[asked.what](subject, asked.work, asked)


if __name__ == "__main__":
    main()
