"""What finds the circuit of a known program, and the variables of a squeezed one.

    OMP_NUM_THREADS=1 python studies/programs/run.py [--tracr FOLDER] [STAGE ...]

Stages: `edges` (scores of edges against compiled programs), `sharpness` (the same where attention
is less than hard), `tracr` (the same on weights that Tracr compiled), `squeeze` (programs in fewer
dimensions, and dictionaries of them), `trigrams` (skip trigrams spread over heads). Adds an entry
a case and seed to numbers.json beside this file; what is there already is not done again.
`report.py` makes the tables and the plot.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from unweave.artifact.atomic import write_json
from unweave.circuits.edge_attribution import (
    AttributionSettings,
    edge_scores,
    integrated_edge_scores,
)
from unweave.circuits.exact_edges import exact_edge_scores
from unweave.circuits.wired import Wired
from unweave.dictionaries.activation.topk import TopK
from unweave.dictionaries.baselines.random_directions import random_directions
from unweave.dictionaries.code import Coder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_spec import autoencoder
from unweave.training.batches import ArraySource
from unweave.training.trainee import Trainee, TraineeSettings
from unweave.training.trainer import TrainSettings, train
from unweave.validate.circuit_truth import item_auroc, measure_circuit, node_scores
from unweave.validate.fidelity import measure_fidelity
from unweave.validate.recovery import measure_recovery
from unweave.validate.worlds.programs.as_world import site_vectors
from unweave.validate.worlds.programs.compile import CompileSettings, compile_program
from unweave.validate.worlds.programs.compiled import Compiled
from unweave.validate.worlds.programs.compress import CompressSettings, compress, interference
from unweave.validate.worlds.programs.contrasts import one_embedding, program_contrasts
from unweave.validate.worlds.programs.edge_scores import (
    attention_edges,
    gradient_edges,
    patched_edges,
    random_edges,
    weight_edges,
)
from unweave.validate.worlds.programs.library import LIBRARY, distractor, program
from unweave.validate.worlds.programs.values_found import measure_values
from unweave.validate.worlds.skip_trigrams import TrigramSettings, train_trigrams, trigram_subject
from unweave.validate.worlds.tracr import load_tracr, tracr_cases
from unweave.validate.worlds.trigram_heads import judge_trigrams

NUMBERS = Path(__file__).parent / "numbers.json"
SEEDS = (0, 1, 2)
ROWS, PAIRS, RANDOM_ORDERS = 24, 24, 200
WIDTHS = (1.0, 0.75, 0.55, 0.4)
SQUEEZED = ("previous token", "pattern ab", "induction")
UNSQUEEZABLE = "histogram"
STEPS = 1200
SOFTENED, SHARPNESS = ("previous token", "induction", "pattern ab", "sort"), (4.0, 8.0, 16.0, 50.0)
VARIABLES = {"previous token": 3, "pattern ab": 4, "induction": 4}
SAE_STEPS, SAE_BATCH, SAE_ROWS, TEST_ROWS = 1500, 256, 4096, 400
TRIGRAMS = {
    "2 heads, 3 trigrams": (3, 2),
    "3 heads, 4 trigrams": (4, 3),
    "4 heads, 5 trigrams": (5, 4),
}
Case = Callable[[], dict[str, Any]]


def main(stages: list[str], tracr: Path | None) -> None:
    torch.set_num_threads(1)
    for stage in stages:
        for name, work in STAGES[stage](tracr):
            done = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
            if name not in done.get(stage, {}):
                started = time.process_time()
                entry = work()
                entry["processor_seconds"] = round(time.process_time() - started, 1)
                done = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
                done[stage] = done.get(stage, {}) | {name: entry}
                write_json(NUMBERS, done)
                print(stage, name, json.dumps(entry), flush=True)


def edge_cases(_: Path | None) -> Iterator[tuple[str, Case]]:
    for name in LIBRARY:
        for seed in SEEDS:
            yield f"{name}, seed {seed}", lambda n=name, s=seed: edges_of(n, s)


def edges_of(name: str, seed: int) -> dict[str, Any]:
    """Two distractors beside the program, in a random basis of the stream."""
    wanted = program(name)
    others = [other for other in ("induction", "histogram", "previous token") if other != name][:2]
    compiled = compile_program(
        wanted,
        *(distractor(other, wanted) for other in others),
        settings=CompileSettings(rotation=seed),
    )
    longest = wanted.indices.length
    groups = [wanted.draw(ROWS, length=n, seed=100 * seed + n) for n in (longest - 3, longest)]
    held_out = [wanted.draw(200, length=n, seed=9000 + 10 * seed + n) for n in (3, longest)]
    subject, true = compiled.subject, compiled.edges
    patched = patched_edges(subject, groups, seed=seed)
    scores = {
        "patching": patched,
        "gradient": gradient_edges(subject, groups, seed=seed),
        "weights": weight_edges(subject),
        "attention": attention_edges(subject, groups),
    }
    found = {method: judged(some, true) for method, some in scores.items()}
    found |= prompts(compiled, seed)
    drawn = [item_auroc(random_edges(subject, seed=s), true) for s in range(RANDOM_ORDERS)]
    return {
        "accuracy": sum(compiled.accuracy(rows) for rows in held_out) / 2,
        "blocks": subject.n_layers,
        "directions": compiled.layout.size,
        "edges": len(patched),
        "true_edges": len(true),
        "chance": round(len(true) / len(patched), 4),
        "methods": found,
        "nodes_by_patching": item_auroc(node_scores(patched), compiled.true_nodes),
        "random_auroc": round(float(torch.tensor(drawn).mean()), 4),
        "random_auroc_sd": round(float(torch.tensor(drawn).std()), 4),
    }


def sharpness_stage(_: Path | None) -> Iterator[tuple[str, Case]]:
    for name in SOFTENED:
        for sharpness in SHARPNESS:
            for seed in SEEDS:
                title = f"{name}, {sharpness:g}, seed {seed}"
                yield title, lambda n=name, h=sharpness, s=seed: softened(n, h, s)


def softened(name: str, sharpness: float, seed: int) -> dict[str, Any]:
    """The same with attention that is less than hard."""
    wanted = program(name)
    compiled = compile_program(
        wanted,
        distractor("histogram", wanted),
        settings=CompileSettings(rotation=seed, sharpness=sharpness),
    )
    longest = wanted.indices.length
    groups = [wanted.draw(ROWS, length=n, seed=100 * seed + n) for n in (longest - 3, longest)]
    subject, true = compiled.subject, compiled.edges
    methods = {
        "patching": judged(patched_edges(subject, groups, seed=seed), true),
        "gradient": judged(gradient_edges(subject, groups, seed=seed), true),
    }
    held_out = wanted.draw(200, length=longest, seed=9000 + seed)
    return {
        "accuracy": compiled.accuracy(held_out),
        "methods": methods | prompts(compiled, seed),
    }


def judged(scores: Any, true: Any) -> dict[str, float]:
    found = measure_circuit(scores, true)
    return {"auroc": round(found.auroc, 4), "precision": round(found.precision, 4)}


def prompts(compiled: Compiled, seed: int) -> dict[str, dict[str, float]]:
    """Methods that compare pairs of prompts, on the graph in which tokens and places are one."""
    pairs = program_contrasts(
        compiled, PAIRS, length=compiled.program.indices.length, seed=500 + seed
    )
    wired, true = Wired(compiled.subject), one_embedding(compiled.edges)
    methods = {
        "pairs, exact": exact_edge_scores(wired, pairs, settings=AttributionSettings(batch=PAIRS)),
        "pairs, EAP": edge_scores(wired, pairs),
        "pairs, EAP-IG": integrated_edge_scores(wired, pairs),
    }
    return {name: judged(wired.graph.named(s.abs()), true) for name, s in methods.items()}


def tracr_stage(folder: Path | None) -> Iterator[tuple[str, Case]]:
    for name in tracr_cases(folder) if folder else []:
        yield name, lambda n=name: tracr_case(folder, n)


def tracr_case(folder: Path, name: str) -> dict[str, Any]:
    case = load_tracr(folder, name)
    context = case.subject.context
    groups = [case.draw(16, length=n, seed=n) for n in sorted({max(2, context - 4), context - 1})]
    scores = {
        "patching": patched_edges(case.subject, groups, seed=0),
        "gradient": gradient_edges(case.subject, groups, seed=0),
        "weights": weight_edges(case.subject),
        "attention": attention_edges(case.subject, groups),
    }
    inside = {edge.source for edge in case.edges} - {"embed", "positions"}
    return {
        "description": case.description,
        "examples": len(case.examples),
        "wrong": case.wrong(),
        "components_agree": inside == case.writing,
        "edges": len(scores["patching"]),
        "true_edges": len(case.edges),
        "methods": {method: judged(some, case.edges) for method, some in scores.items()},
    }


def squeeze_stage(_: Path | None) -> Iterator[tuple[str, Case]]:
    for seed in SEEDS:
        for name in SQUEEZED:
            for share in WIDTHS:
                title = f"{name}, {share}, seed {seed}"
                yield title, lambda n=name, w=share, s=seed: squeezed(n, w, s)
        title = f"{UNSQUEEZABLE}, 0.75, seed {seed}"
        yield title, lambda s=seed: squeezed(UNSQUEEZABLE, 0.75, s, dictionary=False)


def squeezed(name: str, share: float, seed: int, *, dictionary: bool = True) -> dict[str, Any]:
    wanted = program(name)
    original = compile_program(wanted)
    size = original.layout.size
    width = round(share * size)
    settings = CompressSettings(width=width, steps=STEPS)
    small = compress(original, settings, seed=seed)
    longest = wanted.indices.length
    held_out = wanted.draw(TEST_ROWS, length=longest, seed=7000 + seed)
    entry: dict[str, Any] = {
        "directions": size,
        "width": width,
        "accuracy": round(small.accuracy(held_out), 4),
        "untrained": round(
            compress(original, settings.model_copy(update={"steps": 1}), seed=seed).accuracy(
                held_out
            ),
            4,
        ),
        "interference": {
            k: round(v, 4) for k, v in interference(small.directions)._asdict().items()
        },
    }
    return entry | (dictionaries(small, held_out, VARIABLES[name], seed) if dictionary else {})


def dictionaries(small: Compiled, held_out: torch.Tensor, k: int, seed: int) -> dict[str, Any]:
    """A TopK autoencoder of as many latents as directions, and random directions, beside."""
    longest = small.program.indices.length
    x = site_vectors(small, small.program.draw(SAE_ROWS, length=longest, seed=3000 + seed))
    latents = len(small.directions_at("final"))
    learned = Dictionary(autoencoder("final", x.shape[1], latents, TopK(k=k)))
    trainee = Trainee(
        {"d": learned}, TraineeSettings(lr=1e-2), steps=SAE_STEPS, batch=SAE_BATCH, seed=2000 + seed
    )
    source = ArraySource({"final": x}, batch=SAE_BATCH, steps=SAE_STEPS, seed=4000 + seed)
    train([trainee], source, settings=TrainSettings(log_every=SAE_STEPS))
    coders: dict[str, Coder] = {
        "topk": learned.eval(),
        "random": random_directions(x, latents, k=k, seed=5000 + seed),
    }
    return {name: recovered(coder, small, held_out) for name, coder in coders.items()}


def recovered(coder: Coder, small: Compiled, held_out: torch.Tensor) -> dict[str, float]:
    x = site_vectors(small, held_out)
    directions, code = small.truth(held_out)
    found = measure_recovery(coder, directions, x, code)
    values = measure_values(coder, small, held_out)
    numbers = {
        "fvu": measure_fidelity(coder, x, x).fvu,
        "mmcs": found.mmcs,
        "mmcs_reverse": found.mmcs_reverse,
        "value_f1": values.f1,
        "value_f1_reverse": values.f1_reverse,
        "value_f1_chance": values.chance,
        "value_cosine": values.cosine,
    }
    return {name: round(number, 4) for name, number in numbers.items()}


def trigram_stage(_: Path | None) -> Iterator[tuple[str, Case]]:
    for name, (trigrams, heads) in TRIGRAMS.items():
        for seed in SEEDS:
            yield f"{name}, seed {seed}", lambda t=trigrams, h=heads, s=seed: trigram_case(t, h, s)


def trigram_case(trigrams: int, heads: int, seed: int) -> dict[str, Any]:
    settings = TrigramSettings(trigrams=trigrams, heads=heads, steps=1500, batch=256, lr=3e-2)
    subject = trigram_subject(train_trigrams(settings, seed=seed))
    verdicts = judge_trigrams(subject, trigrams, seed=8000 + seed)
    return {
        "learnt": sum(v.learnt for v in verdicts),
        "localised": sum(bool(v.heads) for v in verdicts),
        "distributed": sum(v.distributed for v in verdicts),
        "verdicts": [
            v._asdict() | {"evidence": [round(e, 3) for e in v.evidence]} for v in verdicts
        ],
    }


STAGES = {
    "edges": edge_cases,
    "sharpness": sharpness_stage,
    "tracr": tracr_stage,
    "squeeze": squeeze_stage,
    "trigrams": trigram_stage,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", default=list(STAGES), metavar="STAGE")
    parser.add_argument("--tracr", type=Path, help="the folder of Tracr's cases")
    given = parser.parse_args()
    main(given.stages, given.tracr)
