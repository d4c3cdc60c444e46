"""Speed and work of a decompiled network beside the original's, in both executions.

    OMP_NUM_THREADS=1 python studies/execution/run.py STORIES260K stories260K
    OMP_NUM_THREADS=1 python studies/execution/run.py wren wren

SUBJECT NAME: parts for everything are fitted to their blocks for a minute (how well does not matter
to speed: k latents are on whatever they are), then original, factored and explicit network take
turns in one process, one thread, float32. Seconds are the process's own, not the wall's. Finished
subjects are in numbers.json by name.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unweave.activations.workers import Workers
from unweave.decompile.counting import explicit_work, factored_work, original_work
from unweave.decompile.explicit.network import ExplicitNetwork
from unweave.decompile.network import DecompiledNetwork
from unweave.dictionaries.part import Part
from unweave.pipeline.fitting import part_specs
from unweave.progress import Lines
from unweave.subject import Subject, load_subject, token_rows
from unweave.subject.generation import continue_rows
from unweave.training.fit import fit_parts
from unweave.training.local import LocalSettings

HERE = Path(__file__).parent
NUMBERS = HERE / "numbers.json"
LATENTS, K, CONTEXT, TOKENS = 8, 16, 128, 60_000
"""Latents as multiples of d_model; active latents of a part; tokens in a row; tokens fitted on."""
ROUNDS, PASS_ROWS, PROMPT, NEW = 5, 4, 64, 32
"""Turns; rows of a whole pass; tokens of a prompt; tokens written after it."""
Runs = dict[str, Callable[[], object]]


class Calls(TorchDispatchMode):
    """Counts calls of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """One more."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def fitted(subject: Subject, rows: torch.Tensor) -> dict[str, Part]:
    """Parts for queries, keys, attention and MLPs, fitted to their blocks."""
    specs = part_specs(
        subject, latents=LATENTS, k_mlp=K, k_attention=K, k_query=K, k_key=K, skip=False
    )
    with Workers(1) as workers:
        settings = LocalSettings(lr=5e-3)
        parts, _ = fit_parts(
            subject, specs, rows, workers=workers, seed=0, settings=settings, progress=Lines()
        )
    return parts


def race(runs: Runs, tokens: int) -> dict[str, dict]:
    """Tokens a second of each, and how often the original is as fast, over turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:  # the first is for warming up
                seconds[name].append(time.process_time() - start)
    found = {}
    for name, own in seconds.items():
        ratios = sorted(b / a for a, b in zip(seconds["original"], own, strict=True))
        found[name] = {
            "tokens_per_second": round(tokens / statistics.median(own), 1),
            "times_the_original": round(statistics.median(ratios), 2),
            "from": round(ratios[0], 2),
            "to": round(ratios[-1], 2),
        }
    return found


def calls(run: Callable[[], object]) -> int:
    """Calls of operators in one run."""
    with Calls() as counter:
        run()
    return counter.count


def measured(subject: Subject) -> dict:
    """All numbers of one subject."""
    text = token_rows(subject, "self", tokens=TOKENS, context=CONTEXT, seed=0)
    parts = fitted(subject, text.train)
    factored, explicit = DecompiledNetwork(subject, parts), ExplicitNetwork(subject, parts)
    rows, prompts = text.heldout[:PASS_ROWS], text.heldout[:8, :PROMPT]
    with torch.inference_mode():
        apart = (factored(rows) - explicit(rows)).abs().max().item()
        passes: Runs = {
            "original": lambda: subject.run(rows),
            "factored": lambda: factored(rows),
            "explicit": lambda: explicit(rows),
        }
        found = {"pass": race(passes, rows.numel())}
        for count in (1, 8):
            some = prompts[:count]
            writes: Runs = {
                "original": lambda some=some: continue_rows(subject, some, NEW),
                "factored": lambda some=some: factored.generate(some, max_new=NEW),
                "explicit": lambda some=some: explicit.generate(some, max_new=NEW),
            }
            found[f"write {count}"] = race(writes, NEW * count)
        past = explicit.step(prompts[:1]).past_key_values
        steps: Runs = {
            "original": lambda: continue_rows(subject, prompts[:1, :2], 1),
            "factored": lambda: factored.generate(prompts[:1, :2], max_new=1),
            "explicit": lambda: explicit.generate(prompts[:1, :2], max_new=1),
        }
        called = {name: calls(run) for name, run in steps.items()}
    cached = 2 * subject.n_kv_heads * subject.d_head * subject.n_layers
    works = {
        case: {
            "original": original_work(subject, seen),
            "factored": factored_work(subject, parts, seen),
            "explicit": explicit_work(subject, parts, seen, queries=queries),
        }
        for case, seen, queries in (
            ("pass", CONTEXT // 2, CONTEXT),
            ("write", PROMPT + NEW // 2, 1),
        )
    }
    return {
        "latents": {name: part.spec.n_latents for name, part in parts.items() if name[1] == "0"},
        "virtual_weights": explicit.weights.entries,
        "executions_apart": apart,
        "speed": found,
        "calls_of_operators": called,
        "multiply_adds_a_token": works,
        "kept_a_position": {"keys and values": cached, "explicit": past.numbers // PROMPT},
    }


def main(subject: str, name: str) -> None:
    """Measure one subject and write its numbers down."""
    torch.set_num_threads(1)
    found = measured(load_subject(subject, dtype="float32"))
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    numbers[name] = found
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps({key: found[key] for key in ("executions_apart", "speed")}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
