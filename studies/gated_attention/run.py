"""Skip trigrams in attention heads: one-layer models, and gated blocks made of them.

    OMP_NUM_THREADS=1 python studies/gated_attention/run.py WORK [CASE ...]
    OMP_NUM_THREADS=1 python studies/gated_attention/run.py plot

CASE is 2H3ST, 3H4ST or 4H5ST. WORK keeps the trained models, so that a second run starts there.
Writes numbers.json beside this file, one entry a case, and gated.png.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unweave.artifact.atomic import write_json
from unweave.dictionaries.attention.gated_block import GatedBlock, gated_block_for
from unweave.subject import Subject
from unweave.training.attention.gated import GatedSettings, train_gated_blocks
from unweave.training.attention.gated_batches import TokenTables
from unweave.training.schedule import Schedule
from unweave.validate.worlds.skip_trigrams import (
    TrigramSettings,
    blank_network,
    distributed_network,
    draw_trigrams,
    interfering_network,
    localised_network,
    train_trigrams,
    trigram_subject,
)
from unweave.validate.worlds.trigram_heads import TrigramVerdict, judge_trigrams

HERE = Path(__file__).parent
CASES = {"2H3ST": (2, 3), "3H4ST": (3, 4), "4H5ST": (4, 5)}
SEEDS, MOST = 5, 24
"""Models of which all trigrams are learnt, and how many seeds are tried to get them."""
STARTS = 8
"""Gated blocks for each model, from different weights; the one with the least loss is chosen."""
STEPS, DRAWN, OPENING = 3_000, 24, 0.5
SETTINGS = GatedSettings(
    alpha=0.1,
    lr=2e-2,
    beta2=0.99,
    rise=(0.1, 0.6),
    schedule=Schedule(shape="cosine", warmup=0.0, decay_from=0.7),
    log_every=20,
)
JUDGED = 6_000
"""Rows that verdicts come from; their seed is apart from all others."""


def originals(case: str, work: Path) -> tuple[list[Subject], list[dict]]:
    """The first models whose trigrams are all learnt; and what became of every seed's."""
    heads, trigrams = CASES[case]
    found, tried = [], []
    for seed in range(MOST):
        kept = work / f"{case}.{seed}.safetensors"
        network = blank_network(trigrams, heads)
        if kept.is_file():
            network.load_state_dict(load_file(kept))
        else:
            settings = TrigramSettings(
                trigrams=trigrams, heads=heads, steps=1500, batch=256, rows=50_000, lr=2e-2
            )
            network = train_trigrams(settings, seed=100 + seed)
            save_file({n: t.contiguous().clone() for n, t in network.state_dict().items()}, kept)
        subject = trigram_subject(network)
        tried.append({"seed": 100 + seed, "trigrams": judged(subject, trigrams)})
        if all(t["what"] != "unlearnt" for t in tried[-1]["trigrams"]):
            found.append(subject)
        if len(found) == SEEDS:
            break
    return found, tried


def judged(subject: Subject, trigrams: int, block: GatedBlock | None = None) -> list[dict]:
    """What became of each trigram, in the model or with a gated block in its attention's place."""
    if block is None:
        return [_line(v) for v in judge_trigrams(subject, trigrams, seed=9_000, rows=JUDGED)]
    embedded = torch.eye(2 * trigrams + 2)
    with subject.swapped({"blocks.0.attn": block}):
        verdicts = judge_trigrams(
            subject,
            trigrams,
            seed=9_000,
            rows=JUDGED,
            outputs=lambda tokens: block.by_head(embedded[tokens]),
        )
    return [_line(verdict) for verdict in verdicts]


def _line(verdict: TrigramVerdict) -> dict:
    return {
        "b": verdict.b,
        "accuracy": round(verdict.accuracy, 4),
        "false alarms": round(verdict.false_alarms, 4),
        "heads": list(verdict.heads),
        "what": "distributed"
        if verdict.distributed
        else "localised"
        if verdict.heads
        else "unlearnt",
    }


def gated(models: list[Subject], trigrams: int, kind: str) -> dict:
    """Gated blocks for each model, all trained at once, and what became of their trigrams."""
    started = time.process_time()
    starts = STARTS if kind == "gated" else 1
    subjects = [subject for subject in models for _ in range(starts)]
    opening = 0.0 if kind == "published start" else OPENING
    blocks = [
        gated_block_for(one, 0, seed=200 + n, opening=opening) for n, one in enumerate(subjects)
    ]
    settings = SETTINGS
    if kind in ("no price", "no gates"):
        settings = settings.model_copy(update={"alpha": 0.0})
    if kind == "no gates":
        for block in blocks:
            block.open_gates_()
    if kind == "published start":
        settings = settings.model_copy(update={"rise": (0.0, 0.0)})
    log = []
    if kind != "untrained":
        draw = torch.Generator().manual_seed(700)
        tokens = draw_trigrams(trigrams, 10_000, generator=draw).tokens
        source = TokenTables(subjects, tokens, drawn=DRAWN, steps=STEPS, seed=800)
        log = train_gated_blocks(blocks, source, settings)
    runs = []
    for n, (subject, block) in enumerate(zip(subjects, blocks, strict=True)):
        last = [line for line in log if line["block"] == n][-10:]  # one batch's alone is noise
        terms = {t: sum(line[t] for line in last) / len(last) for t in ("error", "gates") if last}
        run = {"model": n // starts, "trigrams": judged(subject, trigrams, block)}
        runs.append(run | {term: round(value, 5) for term, value in terms.items()})
    found = {"runs": runs, "seconds": round(time.process_time() - started, 1)}
    if starts > 1:
        cost = [run["error"] + settings.alpha * run["gates"] for run in runs]
        each = [range(m * starts, (m + 1) * starts) for m in range(len(models))]
        found["chosen"] = [min(those, key=lambda n: cost[n]) for those in each]
    return found


def hand_set(trigrams: int) -> dict:
    """Models whose weights were set by hand."""
    made = {
        "a head each": localised_network(trigrams),
        "two heads that interfere (Jermyn et al.)": interfering_network(trigrams),
    }
    if trigrams == 3:
        made["the middle one between two heads"] = distributed_network()
    return {name: judged(trigram_subject(net), trigrams) for name, net in made.items()}


def main(work: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    out = HERE / "numbers.json"
    for case in cases:
        _, trigrams = CASES[case]
        models, tried = originals(case, work)
        found = {"original": {"runs": tried}}
        print(case, "original", counts(tried), flush=True)
        found["hand-set"] = hand_set(trigrams)
        for kind in ("gated", "no price", "no gates", "published start", "untrained"):
            found[kind] = gated(models, trigrams, kind)
            print(case, kind, counts(found[kind]["runs"]), flush=True)
            if "chosen" in found[kind]:
                chosen = [found[kind]["runs"][n] for n in found[kind]["chosen"]]
                found["gated, chosen"] = {"runs": chosen}
                print(case, "chosen", counts(chosen), flush=True)
            kept = json.loads(out.read_text()) if out.exists() else {}
            write_json(out, kept | {case: found})


def counts(runs: list[dict]) -> dict[str, int]:
    """Trigrams by what became of them; runs in which all are localised, and models with such."""
    said = [t["what"] for run in runs for t in run["trigrams"]]
    whole = [run for run in runs if all(t["what"] == "localised" for t in run["trigrams"])]
    models = len({run["model"] for run in whole if "model" in run})
    each = {w: said.count(w) for w in ("localised", "distributed", "unlearnt")}
    return each | {"runs": len(runs), "whole": len(whole), "models with a whole one": models}


def plot() -> None:
    from matplotlib import pyplot as plt

    found = json.loads((HERE / "numbers.json").read_text())
    kinds = ["original", "gated", "gated, chosen", "no price", "no gates"]
    figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3), sharey=True)
    for axis, (case, each) in zip(axes, found.items(), strict=True):
        here = [kind for kind in kinds if kind in each]
        base = [0.0] * len(here)
        for what, colour in (("localised", "#2a7"), ("distributed", "#d55"), ("unlearnt", "#bbb")):
            total = [sum(len(r["trigrams"]) for r in each[k]["runs"]) for k in here]
            share = [counts(each[k]["runs"])[what] / n for k, n in zip(here, total, strict=True)]
            axis.barh(here, share, left=base, color=colour, label=what)
            base = [a + b for a, b in zip(base, share, strict=True)]
        axis.set_title(case)
        axis.set_xlabel("share of trigrams")
    axes[0].invert_yaxis()
    axes[-1].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(HERE / "gated.png", dpi=110)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "plot":
        plot()
    else:
        main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
