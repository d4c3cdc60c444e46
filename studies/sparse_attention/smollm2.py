"""The attention of SmolLM2-135M from sparse features, fitted block by block.

    python studies/sparse_attention/smollm2.py STORE [--tokens N] [--latents N] [--k N]

Parts of six layers at a time, kept in STORE, so that a run that was cut off goes on; those of four
layers are then tuned together for a little while. Text: wiki.
Writes runs/smollm2-135m.local.json beside this file.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from run import HERE, controls, summary

from unweave.activations.window import HarvestSettings
from unweave.activations.workers import Workers
from unweave.dictionaries.part_names import place_of
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.fit import fit_parts, load_parts, save_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.splice import Variant, splice_scores

GROUP = 6
FEW = (3, 10, 20, 28)


def specs_of(subject: Subject, asked: argparse.Namespace) -> dict[str, list]:
    """Parts by layer; `z` are the comparators, transcoders of all heads' z at once."""
    k = asked.k
    specs = part_specs(
        subject, latents=asked.latents, k_mlp=1, k_attention=k, k_query=k, k_key=k, skip=False
    )
    own = [spec for spec in specs if place_of(spec.name).kind != "mlp"]
    whole = [s.model_copy(update={"heads": 1}) for s in own if s.name.endswith("attn")]
    return {"heads": own, "z": whole}


def fitted(subject: Subject, train: torch.Tensor, asked: argparse.Namespace, workers: Workers):
    """All parts, from the store or fitted now."""
    for arm, specs in specs_of(subject, asked).items():
        for first in range(0, subject.n_layers, GROUP):
            folder = asked.store / arm / str(first)
            if folder.is_dir():
                continue
            layers = range(first, first + GROUP)
            mine = [spec for spec in specs if place_of(spec.name).layer in layers]
            parts, log = fit_parts(
                subject, mine, train, workers=workers, seed=1,
                settings=LocalSettings(
                    lr=4e-3, pattern_lr=1e-3, batch=512, revive_at=(0.2, 0.45)
                ),
                harvest=HarvestSettings(window_tokens=4096),
            )  # fmt: skip
            making = folder.with_suffix(".making")
            save_parts(parts, making)
            (making / "log.json").write_text(json.dumps(log))
            making.rename(folder)
            print(arm, first, round(time.process_time()), flush=True)
    return {
        arm: {
            name: part
            for first in range(0, subject.n_layers, GROUP)
            for name, part in load_parts(asked.store / arm / str(first)).items()
        }
        for arm in ("heads", "z")
    }


def groups(parts, whole) -> dict[str, dict]:
    """What is put in place together."""
    placed, dense = stand_ins(parts.values(), AtStart()), stand_ins(whole.values(), AtStart())
    patterns = {n: m for n, m in placed.items() if place_of(n).kind in ("q", "k")}
    values = {n: m for n, m in placed.items() if n not in patterns}

    def blocks(chosen):
        return {n: m for n, m in chosen.items() if place_of(n).layer in FEW}

    return {
        "all": placed,
        "patterns only": patterns,
        "values only": values,
        "whole z": dense,
        "few": blocks(placed),
        "few, patterns only": blocks(patterns),
        "few, values only": blocks(values),
        "few, whole z": blocks(dense),
        **{f"block {n}": {m: p for m, p in placed.items() if place_of(m).layer == n} for n in FEW},
    }


def tuned(subject, parts, train, asked, workers) -> dict[str, dict]:
    """The parts of the few layers, tuned together; as they were they go on being measured."""
    few = {n: copy.deepcopy(part) for n, part in parts.items() if place_of(n).layer in FEW}
    settings = JointSettings(tokens=asked.joint, micro_rows=2, micro_batches=4, lr=3e-4)
    tune_jointly(subject, few, train, workers=workers, seed=2, settings=settings)
    placed = stand_ins(few.values(), AtStart())
    patterns = {n: m for n, m in placed.items() if place_of(n).kind in ("q", "k")}
    return {"few, tuned": placed, "few, tuned, patterns only": patterns}


def main() -> None:
    """Fit, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--joint", type=int, default=16_384)
    parser.add_argument("--held", type=int, default=2048)
    parser.add_argument("--latents", type=int, default=4)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    subject = load_subject("smollm2-135m")
    text = token_rows(subject, "wiki", tokens=asked.tokens + 8192, context=128, seed=0)
    held = text.heldout[: asked.held // 128]
    with Workers(1) as workers:
        parts = fitted(subject, text.train[: asked.tokens // 128], asked, workers)
        variants = {n: Variant(g, "propagated") for n, g in groups(*parts.values()).items()}
        placed = tuned(subject, parts["heads"], text.train, asked, workers)
        variants |= {n: Variant(g, "propagated") for n, g in placed.items()}
        # Means of a block's three parts at once; the other controls stand in the small networks.
        first = text.train[:16]
        mean = controls(subject, parts["heads"], first, workers, ("mean", "rank"))
        variants |= {name: Variant(group, "propagated") for name, group in mean.items()}
        scores = splice_scores(subject, variants, held, workers=workers)
    result = {
        "subject": "smollm2-135m",
        "run": "local",
        "active": {"value": asked.k, "query": asked.k, "key": asked.k},
        "latents": asked.latents * subject.d_model,
        "tokens": {"local": asked.tokens, "joint": asked.joint, "held": held.numel()},
        "few": list(FEW),
        "local": {"original": {"ce": round(float(scores["all"].ce_original.mean()), 4)}}
        | {name: summary(one) for name, one in scores.items()},
        "cpu_seconds": round(time.process_time()),
    }
    asked.out.mkdir(exist_ok=True)
    (asked.out / "smollm2-135m.local.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
