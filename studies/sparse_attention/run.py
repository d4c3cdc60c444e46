"""All attention of a small network from sparse features: values, queries and keys.

    python studies/sparse_attention/run.py SUBJECT RUN [--name NAME] [--tokens N] [--joint N]
    python studies/sparse_attention/run.py --collect

SUBJECT: wren, or a folder with stories260K; text: its own. RUN is one of `RUNS`: what is replaced,
and by what, always in every block, with the MLPs the original's. Parts are fitted to their blocks,
then tuned together, as `unweave decompile` does it. Each run writes runs/NAME.RUN.json beside this
file; `--collect` makes numbers.json and fidelity.png of them.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unweave.activations.window import Harvester, start_vectors
from unweave.activations.workers import Workers
from unweave.dictionaries.baselines.pca import principal_directions
from unweave.dictionaries.part import Part
from unweave.dictionaries.part_names import output_site, place_of
from unweave.pipeline.fitting import part_specs
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.fit import fit_parts
from unweave.training.joint import JointSettings, tune_jointly
from unweave.training.local import LocalSettings
from unweave.training.stand_in import AtStart, stand_ins
from unweave.validate.baselines import MeanOutput, random_part
from unweave.validate.bootstrap import mean_interval
from unweave.validate.splice import RowScores, Variant, splice_scores

HERE = Path(__file__).parent
HELD = 8192


@dataclass(frozen=True)
class Kind:
    """How many latents are active for values, queries and keys; what a value latent reads."""

    value: int = 0
    query: int = 0
    key: int = 0
    one_head: bool = True
    pattern_weight: float = 0.0


RUNS = {
    # Everything in features, 48 in all.
    "features": Kind(24, 12, 12, pattern_weight=0.3),
    # The same with half as many.
    "features-24": Kind(12, 6, 6, pattern_weight=0.3),
    # The subject's own patterns: latents that read one head's z, and a transcoder of all of z.
    "exact": Kind(24),
    "exact-whole-z": Kind(24, one_head=False),
    # Values as the subject moves them: patterns alone in features.
    "patterns": Kind(0, 12, 12, pattern_weight=0.3),
}
SEEDS = {"text": 0, "local": 1, "joint": 2}


def specs_of(subject: Subject, kind: Kind, latents: int) -> list:
    """The parts of a run."""
    every = part_specs(
        subject,
        latents=latents,
        k_mlp=1,
        k_attention=max(1, kind.value),
        k_query=kind.query,
        k_key=kind.key,
        skip=False,
    )
    wanted = {"attn": kind.value, "q": kind.query, "k": kind.key, "mlp": 0}
    specs = [spec for spec in every if wanted[place_of(spec.name).kind]]
    if not kind.one_head:
        specs = [spec.model_copy(update={"heads": 1}) for spec in specs]
    return specs


def summary(scores: RowScores) -> dict[str, list[float] | float]:
    """Means over held-out rows, the rise of the loss with its 95 % interval."""
    rise = mean_interval(scores.ce_increase)
    return {
        "ce_increase": round(rise.value, 4),
        "interval": [round(rise.low, 4), round(rise.high, 4)],
        "kl": round(float(scores.kl.mean()), 4),
        "top1": round(float(scores.top1_agreement.mean()), 4),
    }


class Leading(nn.Module):
    """The k leading principal directions of what a block gives: a truncation of its rank."""

    def __init__(self, block: nn.Module, y: Tensor, start: Tensor, k: int) -> None:
        super().__init__()
        self.block, self.start = block, start
        self.mean, directions, _ = principal_directions(y)
        self.directions = directions[:k]

    def forward(self, x: Tensor) -> Tensor:
        """Site to site; the start token's constant is kept, as parts keep it."""
        y = (self.block(x).float() - self.mean) @ self.directions.T @ self.directions + self.mean
        return torch.cat([self.start.expand(len(y), 1, -1), y[:, 1:]], dim=1).to(x.dtype)


def controls(
    subject: Subject,
    parts: Mapping[str, Part],
    train: Tensor,
    workers: Workers,
    wanted: Sequence[str] = ("mean", "random", "rank"),
) -> dict[str, dict[str, nn.Module]]:
    """Means, random parts, and truncations of rank with as many numbers per token."""
    sites = {name: output_site(name) for name in parts}
    y = Harvester(subject, train, list(sites.values()), workers=workers, seed=0).window(0).vectors
    starts = start_vectors(subject, train, list(sites.values()))
    modules = {name: subject.place(site).module for name, site in sites.items()}
    blocks = {name: subject.model.get_submodule(path) for name, path in modules.items()}
    made: dict[str, dict[str, nn.Module]] = {}
    if "mean" in wanted:
        made["mean"] = {n: MeanOutput(y[s], starts[s]) for n, s in sites.items()}
    if "random" in wanted:
        parts_at_random = [random_part(p, y[sites[n]], seed=5) for n, p in parts.items()]
        made["random"] = dict(stand_ins(parts_at_random, AtStart()))
    if "rank" in wanted:
        made["rank"] = {
            n: Leading(blocks[n], y[s], starts[s], parts[n].spec.k) for n, s in sites.items()
        }
    return made


def groups_of(placed: Mapping[str, nn.Module]) -> dict[str, dict[str, nn.Module]]:
    """What is put in place together: everything, kinds of parts, single blocks."""
    patterns = {n: m for n, m in placed.items() if place_of(n).kind in ("q", "k")}
    values = {n: m for n, m in placed.items() if n not in patterns}
    layers = sorted({place_of(name).layer for name in placed})
    return {
        "all": dict(placed),
        **({"patterns only": patterns, "values only": values} if patterns and values else {}),
        **{
            f"block {layer}": {n: m for n, m in placed.items() if place_of(n).layer == layer}
            for layer in layers
        },
    }


def measured(
    subject: Subject,
    parts: Mapping[str, Part],
    held: Tensor,
    workers: Workers,
    others: Mapping[str, Mapping[str, nn.Module]],
) -> dict[str, dict]:
    """Scores of the parts in every grouping, and of their controls."""
    placed = stand_ins(parts.values(), AtStart())
    variants = {name: Variant(group, "propagated") for name, group in groups_of(placed).items()}
    variants["all, clean"] = Variant(placed, "clean")
    variants |= {name: Variant(group, "propagated") for name, group in others.items()}
    scores = splice_scores(subject, variants, held, workers=workers)
    original = float(np.mean(scores["all"].ce_original))
    return {"original": {"ce": round(original, 4)}} | {n: summary(s) for n, s in scores.items()}


def run(asked: argparse.Namespace) -> dict:
    """One run, from text to scores."""
    kind, subject = RUNS[asked.run], load_subject(asked.subject, dtype="float32")
    rows = token_rows(subject, "self", tokens=asked.tokens, context=128, seed=SEEDS["text"])
    held = rows.heldout[: HELD // 128]
    specs = specs_of(subject, kind, asked.latents)
    begun = time.process_time()
    with Workers(1) as workers:
        short = {"batch": 512, "epochs": 1}
        started, _ = fit_parts(  # a step of next to nothing: the parts as they start
            subject, specs, rows.train[:64], workers=workers, seed=SEEDS["local"],
            settings=LocalSettings(lr=1e-9, revive_at=(), **short),
        )  # fmt: skip
        parts, log = fit_parts(
            subject, specs, rows.train[: asked.local // 128], workers=workers,
            seed=SEEDS["local"], settings=LocalSettings(lr=5e-3),
        )  # fmt: skip
        others = controls(subject, parts, rows.train, workers)
        others["untrained"] = stand_ins(started.values(), AtStart())
        before = measured(subject, parts, held, workers, {})
        settings = JointSettings(
            tokens=asked.joint, micro_rows=8, lr=asked.lr, pattern_weight=kind.pattern_weight
        )
        tune_jointly(
            subject, parts, rows.train, workers=workers, seed=SEEDS["joint"], settings=settings
        )
        after = measured(subject, parts, held, workers, others)
    return {
        "subject": asked.name,
        "run": asked.run,
        "active": {"value": kind.value, "query": kind.query, "key": kind.key},
        "latents": {spec.name: spec.n_latents for spec in specs[:3]},
        "tokens": {"local": asked.local, "joint": asked.joint, "held": held.numel()},
        "fvu_local": {line["part"]: round(line["fvu"], 4) for line in log},
        "local": before,
        "tuned": after,
        "cpu_seconds": round(time.process_time() - begun),
    }


def collect() -> None:
    """numbers.json and the picture, of all runs there are."""
    from drawing import draw

    found = [json.loads(path.read_text()) for path in sorted((HERE / "runs").glob("*.json"))]
    numbers = {f"{one['subject']}/{one['run']}": one for one in found}
    (HERE / "numbers.json").write_text(json.dumps(numbers, indent=1) + "\n")
    draw(numbers, HERE / "fidelity.png")


def main() -> None:
    """Read the command line and do one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", nargs="?")
    parser.add_argument("run", nargs="?", choices=list(RUNS))
    parser.add_argument("--name")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--local", type=int, default=300_000)
    parser.add_argument("--joint", type=int, default=500_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--latents", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "runs")
    parser.add_argument("--collect", action="store_true")
    asked = parser.parse_args()
    if asked.collect:
        collect()
        return
    asked.name = asked.name or Path(asked.subject).name
    torch.set_num_threads(1)
    asked.out.mkdir(exist_ok=True, parents=True)
    path = asked.out / f"{asked.name}.{asked.run}.json"
    path.write_text(json.dumps(run(asked), indent=1) + "\n")


if __name__ == "__main__":
    main()
