"""Patterns from query and key features, beside patterns from what else describes a block.

    OMP_NUM_THREADS=1 python studies/qk_transcoders/run.py wren
    OMP_NUM_THREADS=1 python studies/qk_transcoders/run.py smollm2-135m
    OMP_NUM_THREADS=1 python studies/qk_transcoders/run.py variants
    OMP_NUM_THREADS=1 QK_FOLDER=TRAINED python studies/qk_transcoders/run.py equal [LAYER ...]
    python studies/qk_transcoders/run.py plot

For each layer: a QK transcoder with k query and k key features per token; autoencoders of what the
block reads with as many latents as both together, k or 2 k of them active; queries and keys from a
few singular directions of each head; the mean pattern; and a transcoder whose rows point anywhere.
All judged on held-out rows in float32. Finished layers are in numbers.json and are not done again;
trained transcoders go to the folder that QK_FOLDER names, if any, and are taken from there.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

from unweave.dictionaries.activation.batchtopk import BatchTopK
from unweave.dictionaries.activation.relu import ReLU
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.attention.qk_block import QKBlock, attention_inputs, qk_block
from unweave.dictionaries.attention.qk_start import start_qk
from unweave.dictionaries.attention.qk_transcoder import QKTranscoder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.progress import Lines
from unweave.subject import load_subject, token_rows
from unweave.training.attention.qk import QKSettings, learn_qk
from unweave.training.attention.qk_loss import QKLossSettings
from unweave.training.batches import ArraySource
from unweave.training.recipes.ask import Ask
from unweave.training.recipes.catalog import recipe
from unweave.training.trainee import Trainee
from unweave.training.trainer import train
from unweave.validate.attention.patterns import measure_patterns, pattern_ce
from unweave.validate.attention.predictors import (
    FromFeatures,
    FromReconstruction,
    PatternPredictor,
    low_rank,
    mean_pattern,
    untrained,
)
from unweave.validate.bootstrap import Interval

RECORDS = Path(__file__).parent / "numbers.json"
CONTEXT = 128
PLANS = {
    "wren": {
        "text": "self", "tokens": 200_000, "rows": 1200, "held": 48, "ce_rows": 48,
        "layers": (0, 1, 2, 3, 4), "features": 512, "k": 16, "steps": 1400, "small": 36,
        "ranks": (4, 8, 16), "lr": 2e-2, "batch": 4, "kind": BatchTopK,
        "own": {0: {"batch": 8, "exponent": 0.5}}, "coder_rows": 8,
    },
    "smollm2-135m": {
        "text": "wiki", "tokens": 130_000, "rows": 800, "held": 24, "ce_rows": 12,
        "layers": (3, 14, 25), "features": 1024, "k": 36, "steps": 300, "small": 0,
        "ranks": (4, 8, 16), "lr": 5e-3, "batch": 8, "kind": TopK,
        "own": {}, "coder_rows": 16,
    },
}  # fmt: skip
"""`features` on each side; `small`: features of the transcoder with as many numbers as the rank
that stands last in `ranks`; the first rank costs as many numbers per token as k (all heads).
`batch`: rows per step; an autoencoder sees vectors of `coder_rows`. `own`: blocks that are trained
otherwise (`exponent`: of each query's KL)."""
SEED = 0


def main(name: str) -> None:
    torch.set_num_threads(1)
    plan = PLANS[name]
    missing = [layer for layer in plan["layers"] if f"{name} L{layer}" not in records()]
    if not missing:
        return
    reader = load_subject(name, dtype="bfloat16")
    judge = load_subject(name, dtype="float32")
    text = token_rows(judge, plan["text"], tokens=plan["tokens"], context=CONTEXT)
    rows, held = text.train[: plan["rows"]], text.heldout[: plan["held"]]
    print(f"{name}: {len(rows)} rows to train on, {len(held)} held out", flush=True)
    inputs = attention_inputs(reader, rows, missing)
    unseen = attention_inputs(judge, held, missing)
    for layer in missing:
        x, block = inputs.pop(layer), qk_block(judge, layer, CONTEXT)
        begun = time.process_time()
        predictors = made(f"{name}.L{layer}", layer, block, x, plan | plan["own"].get(layer, {}))
        found = measure_patterns(predictors, block, unseen[layer])
        splice = {n: p for n, p in predictors.items() if n in SPLICED}
        rise = pattern_ce(judge, layer, splice, held[: plan["ce_rows"]])
        line = {n: numbers(scores._asdict()) for n, scores in found.items()}
        for n, interval in rise.items():
            line[n] |= numbers({"ce_increase": interval})
        line["seconds"] = {"processor": round(time.process_time() - begun)}
        keep(f"{name} L{layer}", line)
        show(f"{name} L{layer}", line)


SPLICED = ("features", "autoencoder k", "autoencoder 2k", "rank 4", "mean", "untrained", "whole")
"""Whose pattern the network is run on."""


def made(
    name: str, layer: int, block: QKBlock, x: torch.Tensor, plan: dict
) -> dict[str, PatternPredictor]:
    """Everything that says where the block looks."""
    site, k, n = f"blocks.{layer}.attn.in", plan["k"], plan["features"]
    folder = Path(os.environ["QK_FOLDER"]) / name if "QK_FOLDER" in os.environ else None
    if folder and (folder / "spec.json").exists():
        features = QKTranscoder.load(folder)
    else:
        features = transcoder(block, x, site, n, plan["kind"](k=k), plan)
        if folder:
            features.save(folder)
    found: dict[str, PatternPredictor] = {"features": FromFeatures(features, block)}
    if plan["small"]:
        brief = plan | {"steps": plan["steps"] // 2}
        few = transcoder(block, x, site, plan["small"], plan["kind"](k=k), brief)
        found["features, few"] = FromFeatures(few, block)
    coders = [("autoencoder k", TopK(k=k)), ("autoencoder 2k", TopK(k=2 * k))]
    if plan["kind"] is BatchTopK:
        coders.append(("autoencoder k, BatchTopK", BatchTopK(k=k)))
    for label, chosen in coders:
        coder = autoencoder(x, site, 2 * n, chosen, plan)
        found[label] = FromReconstruction(coder, block)
    for rank in plan["ranks"]:
        found[f"rank {rank}"] = low_rank(block, x, rank)
        found[f"rank {rank}, by data"] = low_rank(block, x, rank, by_data=True)
    found["whole"] = low_rank(block, x[:1], block.W_Q.shape[2])
    found["mean"] = mean_pattern(block, x[:400])
    found["untrained"] = FromFeatures(untrained(features, seed=SEED + 7), block)
    return found


def transcoder(
    block: QKBlock, x: torch.Tensor, site: str, n: int, activation, plan: dict, **loss
) -> QKTranscoder:
    """Begun and trained."""
    one = start_qk(
        block, x[:64], site=site, n_queries=n, n_keys=n, query_activation=activation, seed=SEED,
        start="svd" if activation.kind == "relu" else "data",
    )  # fmt: skip
    settings = QKSettings(
        steps=plan["steps"],
        rows=plan["batch"],
        lr=plan["lr"],
        loss=QKLossSettings(exponent=plan.get("exponent", 1.0), **loss),
    )
    learn_qk(one, block, x, seed=SEED + 1, settings=settings, progress=Lines(every=60))
    return one


def autoencoder(x: torch.Tensor, site: str, n: int, activation, plan: dict) -> Dictionary:
    """The best short recipe for an autoencoder, given at least the transcoder's tokens."""
    vectors = x[:, 1:].flatten(0, 1)
    port = Port(site=site, width=vectors.shape[1])
    ask = Ask(reads=(port,), writes=(port,), n_latents=n, k=activation.k)
    built = recipe("topk-short")(ask)
    spec = built.specs["dictionary"].model_copy(update={"activation": activation})
    coder, steps = Dictionary(spec), plan["steps"]
    batch = plan["coder_rows"] * (CONTEXT - 1)
    source = ArraySource({site: vectors}, batch=batch, steps=steps, seed=SEED)
    trainee = Trainee({"sae": coder}, built.settings, steps=steps, batch=batch, seed=SEED + 1)
    train([trainee], source)
    return coder.eval()


def equal(layers: list[int]) -> None:
    """SmolLM2: as many parameters as rank 16 of each head has, and the loss on more rows.

    The network is judged by its loss in bfloat16; `whole`, its own queries and keys, shows what
    that alone does.
    """
    torch.set_num_threads(1)
    name, plan, folder = "smollm2-135m", PLANS["smollm2-135m"], Path(os.environ["QK_FOLDER"])
    reader, judge = (load_subject(name, dtype=dtype) for dtype in ("bfloat16", "float32"))
    text = token_rows(judge, plan["text"], tokens=plan["tokens"], context=CONTEXT)
    for layer in layers or plan["layers"]:
        x = attention_inputs(reader, text.train[:EQUAL_ROWS], [layer])[layer]
        unseen = attention_inputs(judge, text.heldout[: plan["held"]], [layer])
        block = qk_block(judge, layer, CONTEXT)
        site, kind = f"blocks.{layer}.attn.in", plan["kind"](k=plan["k"])
        few = transcoder(block, x, site, EQUAL, kind, plan)
        many = QKTranscoder.load(folder / f"{name}.L{layer}")
        judged: dict[str, PatternPredictor] = {"features, few": FromFeatures(few, block)}
        judged["rank 16"] = low_rank(block, x, 16)
        spliced = judged | {"features": FromFeatures(many, block), "mean": mean_pattern(block, x)}
        spliced["whole"] = low_rank(block, x[:1], block.W_Q.shape[2])
        judged["rank 16, by data"] = low_rank(block, x, 16, by_data=True)
        found = measure_patterns(judged, block, unseen[layer])
        line = {n: numbers(scores._asdict()) for n, scores in found.items()}
        for n, rise in pattern_ce(reader, layer, spliced, text.heldout[:EQUAL_CE_ROWS]).items():
            line.setdefault(n, {}).update(numbers({"ce_increase": rise}))
        keep(f"{name} L{layer} equal", line)
        show(f"{name} L{layer} equal", line)


EQUAL, EQUAL_ROWS, EQUAL_CE_ROWS = 93, 200, 32
"""Features on each side that come to the parameters of rank 16, rows they learn from, and rows on
which the loss is measured."""


def variants() -> None:
    """Sparsities and activations on one layer of wren."""
    torch.set_num_threads(1)
    plan, layer = PLANS["wren"], 2
    judge = load_subject("wren", dtype="float32")
    text = token_rows(judge, plan["text"], tokens=plan["tokens"], context=CONTEXT)
    block = qk_block(judge, layer, CONTEXT)
    x = attention_inputs(judge, text.train[: plan["rows"]], [layer])[layer]
    unseen = attention_inputs(judge, text.heldout[: plan["held"]], [layer])[layer]
    for label, activation, loss in (
        ("BatchTopK 4", BatchTopK(k=4), {}),
        ("BatchTopK 8", BatchTopK(k=8), {}),
        ("BatchTopK 32", BatchTopK(k=32), {}),
        ("TopK 16", TopK(k=16), {}),
        ("ReLU, roots 3e-3", ReLU(), {"penalty": 3e-3}),
        ("ReLU, roots 1e-2", ReLU(), {"penalty": 1e-2}),
    ):
        key = f"wren L2 {label}"
        if key in records():
            continue
        site = f"blocks.{layer}.attn.in"
        one = transcoder(block, x, site, plan["features"], activation, plan, **loss)
        found = measure_patterns({"features": FromFeatures(one, block)}, block, unseen)
        keep(key, {n: numbers(scores._asdict()) for n, scores in found.items()})
        show(key, records()[key])


def numbers(found: dict[str, Interval | int]) -> dict[str, list[float] | int]:
    """Values and intervals, short enough to read."""
    return {
        name: [float(f"{v:.5g}") for v in value] if isinstance(value, Interval) else value
        for name, value in found.items()
        if not (isinstance(value, Interval) and value.value != value.value)
    }


def records() -> dict[str, dict]:
    return json.loads(RECORDS.read_text()) if RECORDS.exists() else {}


def keep(name: str, line: dict) -> None:
    RECORDS.write_text(json.dumps(records() | {name: line}, indent=1) + "\n")


def show(name: str, line: dict) -> None:
    for predictor, found in line.items():
        short = {k: v[0] if isinstance(v, list) else v for k, v in found.items()}
        print(name, predictor, short, flush=True)


def plot() -> None:
    """patterns.png: KL and argmax match of every layer, by predictor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {n: line for n, line in records().items() if "autoencoder k" in line and "," not in n}
    shown = {
        "features": ("query and key features", "#b5651d", "o"),
        "autoencoder k": ("autoencoder, k", "#3b5b7a", "s"),
        "autoencoder 2k": ("autoencoder, 2 k", "#3b5b7a", "^"),
        "rank 4": ("rank 4 of each head", "#777777", "v"),
        "rank 4, by data": ("rank 4, by data", "#777777", "d"),
        "mean": ("mean pattern", "#cc8899", "x"),
        "untrained": ("untrained features", "#cc8899", "+"),
    }
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for axis, metric, label in zip(
        axes, ("kl", "argmax"), ("KL, nats", "same most attended key, share"), strict=True
    ):
        for key, (name, colour, marker) in shown.items():
            values = [line[key][metric][0] for line in found.values()]
            axis.plot(values, marker, color=colour, label=name, markersize=5)
        axis.set_xticks(range(len(found)), [n.replace("-135m", "") for n in found], rotation=60)
        axis.set(ylabel=label)
    axes[0].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=7, ncols=2)
    figure.savefig(RECORDS.parent / "patterns.png", dpi=110)


if __name__ == "__main__":
    asked = sys.argv[1:]
    if asked == ["plot"]:
        plot()
    elif asked == ["variants"]:
        variants()
    elif asked[:1] == ["equal"]:
        equal([int(layer) for layer in asked[1:]])
    elif len(asked) == 1 and asked[0] in PLANS:
        main(asked[0])
    else:
        sys.exit(__doc__)
