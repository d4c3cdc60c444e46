"""Skip trigrams in attention heads: one-layer models, and gated blocks made of them.

    OMP_NUM_THREADS=1 python studies/gated_attention/run.py WORK [CASE ...]

CASE is 2H3ST, 3H4ST or 4H5ST. WORK keeps the trained models, so that a second run starts there;
what numbers.json beside this file has already is not run again.
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
from unweave.training.attention.gated_choice import missed_by_one_head
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
WIDE_STEPS, WIDE_DRAWN, WIDE_EXPANSION = 2_000, 12, 4
WIDE = SETTINGS.model_copy(update={"rise": (0.0, 0.3)})
"""Four times the heads and a price that is there sooner, before heads have shared the work out."""
FRESH, FRESH_STARTS = 300, 4
"""First seed of models that had no part in choosing settings or criterion; blocks of each."""
MUCH = 0.08
"""Fresh models whose best start misses more than this get as many starts again."""
JUDGED = 6_000
"""Rows that verdicts come from; their seed is apart from all others."""


def originals(case: str, work: Path, first: int = 100) -> tuple[list[Subject], list[dict]]:
    """The first models whose trigrams are all learnt; and what became of every seed's."""
    heads, trigrams = CASES[case]
    found, tried = [], []
    for seed in range(MOST):
        kept = work / f"{case}.{first - 100 + seed}.safetensors"
        network = blank_network(trigrams, heads)
        if kept.is_file():
            network.load_state_dict(load_file(kept))
        else:
            settings = TrigramSettings(
                trigrams=trigrams, heads=heads, steps=1500, batch=256, rows=50_000, lr=2e-2
            )
            network = train_trigrams(settings, seed=first + seed)
            save_file({n: t.contiguous().clone() for n, t in network.state_dict().items()}, kept)
        subject = trigram_subject(network)
        tried.append({"seed": first + seed, "trigrams": judged(subject, trigrams)})
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


def wide(models: list[Subject], trigrams: int, alpha: float, starts: int, seed: int = 200) -> dict:
    """Blocks with four times the heads; the start that misses least with one head a place is kept.

    The choice is made on rows apart from those of training and from those of the verdicts.
    """
    started = time.process_time()
    subjects = [subject for subject in models for _ in range(starts)]
    blocks = [
        gated_block_for(one, 0, seed=seed + n, opening=OPENING, expansion=WIDE_EXPANSION)
        for n, one in enumerate(subjects)
    ]
    tokens = drawn_rows(trigrams, 10_000, seed=700)
    source = TokenTables(subjects, tokens, drawn=WIDE_DRAWN, steps=WIDE_STEPS, seed=800)
    log = train_gated_blocks(blocks, source, WIDE.model_copy(update={"alpha": alpha}))
    apart = drawn_rows(trigrams, 1_500, seed=4_242)
    x, runs = torch.eye(2 * trigrams + 2)[apart], []
    for n, (subject, block) in enumerate(zip(subjects, blocks, strict=True)):
        y = subject.run(apart, capture=["blocks.0.attn.out"], logits=False)
        last = [line for line in log if line["block"] == n][-10:]
        verdicts = judged(subject, trigrams, block)
        runs.append(
            {
                "model": n // starts,
                "loss": round(sum(r["error"] + WIDE.alpha * r["gates"] for r in last) / 10, 5),
                "missed": round(missed_by_one_head(block, x, y.sites["blocks.0.attn.out"]), 4),
                "accuracy": min(v["accuracy"] for v in verdicts),
                "trigrams": [{"what": v["what"]} for v in verdicts],
            }
        )
    each = [range(m * starts, (m + 1) * starts) for m in range(len(models))]
    choice = {
        f"chosen by {what}": [min(those, key=lambda n: runs[n][what]) for those in each]
        for what in ("missed", "loss")
    }
    return {"runs": runs, **choice, "seconds": round(time.process_time() - started, 1)}


def again(models: list[Subject], trigrams: int, found: dict) -> dict:
    """As many starts more for models whose best start misses much; and what is kept of all."""
    kept = [found["runs"][n] for n in found["chosen by missed"]]
    poor = [m for m, run in enumerate(kept) if run["missed"] > MUCH]
    if poor:
        more = wide([models[m] for m in poor], trigrams, WIDE.alpha, FRESH_STARTS, seed=400)
        for m, n in zip(poor, more["chosen by missed"], strict=True):
            other = more["runs"][n] | {"model": m}
            kept[m] = min(kept[m], other, key=lambda run: run["missed"])
        return {"runs": kept, "models": poor, "more": more}
    return {"runs": kept, "models": []}


def drawn_rows(trigrams: int, rows: int, *, seed: int) -> torch.Tensor:
    return draw_trigrams(trigrams, rows, generator=torch.Generator().manual_seed(seed)).tokens


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

    def add(case: str, kind: str, found: dict) -> None:
        kept = json.loads(out.read_text()) if out.exists() else {}
        write_json(out, kept | {case: kept.get(case, {}) | {kind: found}})
        if "runs" in found:
            print(case, kind, counts(found["runs"]), flush=True)

    for case in cases:
        _, trigrams = CASES[case]
        kept = json.loads(out.read_text()).get(case, {}) if out.exists() else {}
        models, tried = originals(case, work)
        add(case, "original", {"runs": tried})
        if "hand-set" not in kept:
            add(case, "hand-set", hand_set(trigrams))
        for kind in ("gated", "no price", "no gates", "published start", "untrained"):
            if kind not in kept:
                add(case, kind, found := gated(models, trigrams, kind))
                if "chosen" in found:
                    chosen = [found["runs"][n] for n in found["chosen"]]
                    add(case, "gated, chosen", {"runs": chosen})
        if "wide" not in kept:
            add(case, "wide", wide(models, trigrams, WIDE.alpha, STARTS))
        if "wide, fresh models" not in kept:
            fresh, tried = originals(case, work, FRESH)
            add(case, "original, fresh", {"runs": tried})
            found = wide(fresh, trigrams, WIDE.alpha, FRESH_STARTS)
            add(case, "wide, fresh models", found)
            add(case, "wide, fresh models, again", again(fresh, trigrams, found))
        if "wide, no price" not in kept:
            add(case, "wide, no price", wide(models, trigrams, 0.0, FRESH_STARTS))


def counts(runs: list[dict]) -> dict[str, int]:
    """Trigrams by what became of them; runs in which all are localised, and models with such."""
    said = [t["what"] for run in runs for t in run["trigrams"]]
    whole = [run for run in runs if all(t["what"] == "localised" for t in run["trigrams"])]
    models = len({run["model"] for run in whole if "model" in run})
    each = {w: said.count(w) for w in ("localised", "distributed", "unlearnt")}
    return each | {"runs": len(runs), "whole": len(whole), "models with a whole one": models}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:] or list(CASES))
