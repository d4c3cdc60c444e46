"""The encoder-frozen finetune of Wright & Sharkey (2024) on real language models.

    python studies/suppression/run.py SUBJECT LAYER SEED

Trains L1 dictionaries on the residual stream before a block, finetunes each with its encoder frozen
(scale, decoder) and takes the closed-form scale too; splices all into the network on held-out rows
and appends one JSON line per dictionary to studies/suppression/results.jsonl. Controls: one factor
for all latents (1 / gamma), and as many more steps of the L1 training instead of the finetune.
"""

import json
import math
import sys
from pathlib import Path

import torch

from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.dictionaries.initial import Start
from unweave.subject import Subject, load_subject, token_rows
from unweave.training.batches import ArraySource, VectorBatch
from unweave.training.dead import DeadLatents
from unweave.training.penalties.pointwise import L1
from unweave.training.penalties.weighted import Penalty
from unweave.training.schedule import Schedule
from unweave.training.suppression import (
    FinetuneSettings,
    finetune,
    rescaled,
    scale_oracle,
    suppression,
)
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.validate.splice_dictionary import splice_reports

RESULTS = Path(__file__).parent / "results.jsonl"
PLANS = {
    "wren": {
        "text": "self", "rows": 2800, "latents": 1024, "lambdas": (1.0, 2.0), "steps": 800,
        "held": 64, "judge": "float32",
    },
    "smollm2-135m": {
        "text": "wiki", "rows": 1200, "latents": 2304, "lambdas": (3.0,), "steps": 500,
        "held": 40, "judge": "bfloat16",
    },
}  # fmt: skip
"""Rows to train on and to judge by, lambdas of the L1, steps, number format of the judge."""
BATCH, CONTEXT = 512, 128


def main(name: str, layer: int, seed: int) -> None:
    plan, site = PLANS[name], f"blocks.{layer}.resid_pre"
    subject = load_subject(name, dtype="bfloat16")
    text = token_rows(subject, plan["text"], tokens=400_000, context=CONTEXT)
    judge = load_subject(name, dtype=plan["judge"])
    vectors = torch.cat([taken(subject, g, site) for g in text.train[: plan["rows"]].split(16)])
    held = text.heldout[: plan["held"]]
    unseen = VectorBatch({site: torch.cat([taken(judge, g, site) for g in held.split(16)])})
    for weight in plan["lambdas"]:
        if (name, layer, seed, weight) in done():
            continue
        sets = variants(vectors, site, weight, plan, seed)
        reports = splice_reports(
            judge, {k: {"d": d} for k, d in sets.items()}, held, downstream_sites=[site],
            rows_at_once=4,
        )  # fmt: skip
        with RESULTS.open("a") as file:
            for variant, report in reports.items():
                line = {"subject": name, "layer": layer, "seed": seed, "weight": weight}
                line |= {"variant": variant} | numbers(report, sets[variant], unseen, site)
                file.write(json.dumps(line) + "\n")
                print(line, flush=True)


def done() -> set[tuple]:
    if not RESULTS.exists():
        return set()
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {tuple(line[k] for k in ("subject", "layer", "seed", "weight")) for line in lines}


def variants(
    vectors: torch.Tensor, site: str, weight: float, plan: dict, seed: int
) -> dict[str, Dictionary]:
    """The trained dictionary, its finetuned versions and the controls."""
    steps = plan["steps"]
    source = ArraySource({site: vectors}, batch=BATCH, steps=steps, seed=seed)
    more = ArraySource({site: vectors}, batch=BATCH, steps=steps // 4, seed=seed + 50)
    some = VectorBatch({site: vectors[torch.randperm(len(vectors))[:16384]]})
    dictionary = Dictionary(autoencoder(site, vectors.shape[1], plan["latents"], ReLU()))
    continued = Dictionary(dictionary.spec)
    settings = TraineeSettings(
        penalties=(Penalty(form=L1(), weight=weight),),
        lr=2e-3,
        schedule=Schedule(shape="cosine", warmup=0.05, decay_from=0.05, rest=0.0),
        start=Start(fires=0.05),
        dead=DeadLatents(auxk=None),
    )
    trained = Trainee({"d": dictionary}, settings, steps=steps, batch=BATCH, seed=seed + 100)
    trained.begin(VectorBatch({site: vectors[:8192]}))
    for step in range(steps):
        trained.step(source.at(step))
    continued.load_state_dict(dictionary.state_dict())
    scales = [port.scale for port in dictionary.spec.reads]
    continued.rescale_(scales, scales)
    steady = settings.model_copy(
        update={
            "penalties": (Penalty(form=L1(), weight=weight, warmup=0.0),), "lr": 5e-4,
        }
    )  # fmt: skip
    again = Trainee({"d": continued}, steady, steps=more.steps, batch=BATCH, seed=seed)
    for step in range(more.steps):
        again.step(more.at(step))
    gamma = suppression(dictionary, some).gamma
    found = {
        "L1": dictionary,
        "one factor": rescaled(dictionary, torch.full((plan["latents"],), 1 / gamma)),
        "scale": finetune(dictionary, more, FinetuneSettings(variant="scale", lr=5e-3)),
        "scale, closed form": rescaled(dictionary, scale_oracle(dictionary, some, ridge=1e-3)),
        "decoder": finetune(dictionary, more, FinetuneSettings(variant="decoder", lr=5e-4)),
        "more L1 steps": continued,
    }
    return {name: each.eval() for name, each in found.items()}


def numbers(report, dictionary: Dictionary, unseen: VectorBatch, site: str) -> dict:
    """What goes into a line."""
    inside, found = report.inside["d"].fidelity, suppression(dictionary, unseen)
    ce, increase = report.ce_original.value, report.ce_increase.value
    line = {
        "l0": inside.l0, "alive": inside.alive, "mse": inside.mse, "fvu": inside.fvu,
        "relative_error": report.downstream[site], "l2_ratio": found.l2_ratio,
        "gamma": found.gamma, "strength": found.typical, "ce_original": ce,
        "ce_increase": increase, "ce_low": report.ce_increase.low,
        "ce_high": report.ce_increase.high, "kl": report.kl.value,
        "perplexity_increase": math.exp(ce + increase) - math.exp(ce),
        "recovered_zero": report.recovered_zero.value,
        "recovered_mean": report.recovered_mean.value,
    }  # fmt: skip
    return {name: round(value, 5) for name, value in line.items()}


@torch.no_grad()
def taken(subject: Subject, rows: torch.Tensor, site: str) -> torch.Tensor:
    found = subject.run(rows, capture=[site], logits=False).sites[site]
    return found[:, 1:].flatten(0, 1).float()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
