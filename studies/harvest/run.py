"""What each piece of the harvest costs and saves: number formats, copies, memory, lengths.

    python studies/harvest/run.py speed copies memory lengths
    python studies/harvest/run.py quality --subject STORIES260K_FOLDER --text self

Measured on SmolLM2-135M (both sites of all 30 MLPs) unless said otherwise. Each part adds its
numbers to numbers.json beside this file. Times are the least of several repeats, in CPU seconds of
one thread.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from unweave.activations.lengths import buckets
from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.progress import QUIET
from unweave.subject import Subject, load_subject
from unweave.subject.memory import keep_freed_memory
from unweave.subject.texts import Need, open_text

HERE = Path(__file__).parent
CONTEXT = 128
FORMATS = ("float32", "bfloat16", "int8")


def load(spec: str, number: str) -> Subject:
    """A subject in one format; int8 means torch's dynamic quantisation of every linear layer."""
    subject = load_subject(spec, dtype="bfloat16" if number == "bfloat16" else "float32")
    if number == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that it will be removed
            inner = subject.model.get_submodule("model")
            torch.ao.quantization.quantize_dynamic(inner, {torch.nn.Linear}, inplace=True)
    return subject


def mlp_sites(subject: Subject) -> list[str]:
    return [f"blocks.{i}.mlp.{end}" for i in range(subject.n_layers) for end in ("in", "out")]


def any_rows(subject: Subject, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, subject.vocab_size, (count, CONTEXT), generator=generator)


def least(work: Callable[[], object], repeats: int = 5) -> float:
    """CPU seconds of the quickest of some repeats, after one to warm up."""
    work()
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def one_pass(subject: Subject, tokens: Tensor, capture: list[str], logits: bool) -> None:
    with torch.inference_mode():
        subject.run(tokens, capture=capture, logits=logits)


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def speed(options: argparse.Namespace) -> dict:
    """Milliseconds a token of one pass, by format and size of a slice."""
    found: dict[str, dict] = {}
    for number in FORMATS:
        subject = load(options.subject, number)
        sites = mlp_sites(subject)
        for rows in (16,) if number == "int8" else (4, 16, 64):
            tokens = any_rows(subject, rows)

            key = f"{number}, {tokens.numel()} tokens at once"
            per = 1e3 / tokens.numel()
            found[key] = {
                name: round(least(partial(one_pass, subject, tokens, asked, logits), 3) * per, 4)
                for name, asked, logits in (
                    ("with logits", [], True),
                    ("all sites, no logits", sites, False),
                )
            }
            print(key, found[key], flush=True)
    return found


def copied_thrice(subject: Subject, rows: Tensor, buffers: dict[str, Tensor], batch: int) -> None:
    """The way it was: captured, flattened, copied into float32, and drawn from there in batches."""
    with torch.inference_mode():
        per_row = rows.shape[1] - 1
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            run = subject.run(part, capture=list(buffers), logits=False)
            for site, block in buffers.items():
                vectors = run.sites[site][:, 1:].flatten(0, 1).flatten(1)
                block[start * per_row : (start + len(part)) * per_row] = vectors
    order = torch.randperm(len(rows) * per_row)
    for start in range(0, len(order) - batch + 1, batch):
        for block in buffers.values():
            block[order[start : start + batch]]


def copies(options: argparse.Namespace) -> dict:
    """Milliseconds a token: the pass alone, with three copies, and with one."""
    subject = load(options.subject, "bfloat16")
    rows, sites = any_rows(subject, 32), mlp_sites(subject)
    count = rows.numel()

    def alone() -> None:
        with torch.inference_mode():
            for start in range(0, len(rows), 16):
                subject.run(rows[start : start + 16], capture=sites, logits=False)

    buffers = {site: torch.empty(32 * (CONTEXT - 1), subject.d_model) for site in sites}
    with Workers(1) as workers:
        harvesters = [
            Harvester(
                subject, torch.cat([rows, rows]), sites, workers=workers, seed=0, shuffled=True,
                settings=HarvestSettings(window_tokens=count, store=store),
            )
            for store in ("float32", "subject")
        ]  # fmt: skip

        def once(harvester: Harvester) -> None:
            held = harvester._held
            harvester.window(0 if held == 1 else 1)

        arms = {
            "the pass alone": alone,
            "captured, flattened, copied, drawn": lambda: copied_thrice(
                subject, rows, buffers, 2032
            ),
            "laid down in order once, float32": lambda: once(harvesters[0]),
            "laid down in order once, as computed": lambda: once(harvesters[1]),
        }
        found: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(4):
            for name, work in arms.items():
                begin = time.process_time()
                work()
                found[name].append(time.process_time() - begin)
    return {name: round(min(times) / count * 1e3, 4) for name, times in found.items()}


def memory_arm(options: argparse.Namespace) -> dict:
    """One way of keeping memory, in a process of its own; passes run in a worker's thread."""
    if options.arm != "as it comes":
        keep_freed_memory()
    subject = load(options.subject, "bfloat16")
    rows, sites = any_rows(subject, 16), mlp_sites(subject)
    found = {}
    with Workers(1) as workers:
        for name, capture, logits in (("with logits", [], True), ("all sites", sites, False)):
            times, counts = [], []

            for _ in range(6):
                before, begin = faults(), time.process_time()
                work = partial(one_pass, subject, rows, capture)
                list(workers.map(work, [logits]))
                times.append(time.process_time() - begin)
                counts.append(faults() - before)
            per = 1e3 / rows.numel()
            found[name] = {"ms a token": round(min(times) * per, 4), "faults": min(counts)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return found | {"peak MiB": round(peak)}


def memory(options: argparse.Namespace) -> dict:
    """Page faults and time of passes when freed memory goes back to the system, and when kept."""
    found: dict[str, list[dict]] = {}
    arms = {"as it comes": "0", "huge pages": "1", "kept": "0", "kept, huge pages": "1"}
    for _ in range(2):
        for arm, huge in arms.items():
            way = "kept" if arm.startswith("kept") else "as it comes"
            command = [sys.executable, __file__, "memory_arm", "--arm", way]
            done = subprocess.run(
                [*command, "--subject", options.subject],
                env=os.environ | {"THP_MEM_ALLOC_ENABLE": huge},
                capture_output=True,
                text=True,
                check=True,
            )
            found.setdefault(arm, []).append(json.loads(done.stdout))
    return {
        arm: min(runs, key=lambda run: run["all sites"]["ms a token"])
        for arm, runs in found.items()
    }


def lengths(options: argparse.Namespace) -> dict:
    """Tokens computed for each token of the wiki's documents, by how they are run together."""
    subject = load(options.subject, "bfloat16")
    need = Need(400_000, CONTEXT, 0)
    sizes = [
        min(len(document) + 1, 512)
        for document in open_text("wiki").documents(subject, need, QUIET)
    ]
    text = sum(sizes)
    in_turn, at = 0, 0
    while at < len(sizes):
        rows = 1
        while at + rows < len(sizes) and (rows + 1) * max(sizes[at : at + rows + 1]) <= 2048:
            rows += 1
        in_turn += rows * max(sizes[at : at + rows])
        at += rows
    grouped = 0
    for start in range(0, len(sizes), 64):  # about a window of 8,192 tokens
        window = sizes[start : start + 64]
        grouped += sum(
            len(group) * max(window[i] for i in group) for group in buckets(window, 2048)
        )
    return {
        "documents": len(sizes),
        "mean length": round(text / len(sizes), 1),
        "padded to the longest of all": round(len(sizes) * max(sizes) / text, 3),
        "padded in the order given": round(in_turn / text, 3),
        "like lengths together": round(grouped / text, 3),
    }


def main() -> None:
    from quality import quality

    parts = {
        "speed": speed, "copies": copies, "memory": memory, "memory_arm": memory_arm,
        "lengths": lengths, "quality": quality,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="+", choices=parts)
    parser.add_argument("--subject", default="smollm2-135m")
    parser.add_argument("--text", default="wiki")
    parser.add_argument("--arm", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == ["memory_arm"]:
        print(json.dumps(memory_arm(options)))
        return
    keep_freed_memory()
    file = HERE / "numbers.json"
    for part in options.part:
        found = parts[part](options)
        numbers = json.loads(file.read_text()) if file.is_file() else {}
        name = Path(options.subject).parent.name or options.subject
        numbers.setdefault(name, {})[part] = copy.deepcopy(found)
        file.write_text(json.dumps(numbers, indent=1) + "\n")
        print(json.dumps({part: found}, indent=1), flush=True)


if __name__ == "__main__":
    main()
