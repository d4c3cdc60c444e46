"""From text to 30 trained transcoders of SmolLM2-135M, beside the network's own forward passes.

    python studies/all_layers/run.py all --threads 1 --tokens 131072 --out runs/all_layers
    python studies/all_layers/run.py own
    python studies/all_layers/run.py saelens --python ENV/saelens/bin/python

`all` reads and tokenises the wiki, runs the network once, trains one TopK transcoder a layer
(mlp.in to mlp.out, 4,608 latents, k = 32) on what it sees and saves them; what is held out is
measured afterwards and not in the time. The network's own passes over text of the same kind are
timed in the same process before and after. `own` times them as a user finds them, without any
setting of ours. `saelens` has SAELens train one layer on as many vectors. Adds to numbers.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from phases import Phases
from torch import Tensor

from unweave.activations.window import Harvester, HarvestSettings
from unweave.activations.workers import Workers
from unweave.artifact.atomic import new_folder
from unweave.dictionaries.dictionary import Dictionary
from unweave.dictionaries.dictionary_files import save_dictionary
from unweave.dictionaries.dictionary_spec import Port
from unweave.dictionaries.initial import Start
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.subject import Subject, load_subject, token_rows
from unweave.subject.memory import keep_freed_memory
from unweave.training.batches import WindowSource
from unweave.training.dead import DeadLatents
from unweave.training.recipes.ask import Ask
from unweave.training.recipes.catalog import recipe
from unweave.training.trainee import Trainee
from unweave.training.trainer import TrainSettings, train

HERE = Path(__file__).parent
NAME, CONTEXT, LATENTS, K, AT_ONCE = "smollm2-135m", 128, 4608, 32, 16
HELDOUT = 8192


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def since(begin: tuple[float, float]) -> dict[str, float]:
    wall, cpu = clock()
    return {"wall": round(wall - begin[0], 2), "cpu": round(cpu - begin[1], 2)}


def own_passes(subject: Subject, rows: Tensor, *, logits: bool = True) -> float:
    """CPU seconds a token of the network over rows of text, 2,048 tokens at a time."""
    sites = [] if logits else [f"blocks.{subject.n_layers - 1}.mlp.out"]
    begin = time.process_time()
    with torch.inference_mode():
        for start in range(0, len(rows), AT_ONCE):
            subject.run(rows[start : start + AT_ONCE], capture=sites, logits=logits)
    return (time.process_time() - begin) / rows.numel()


def pairs(subject: Subject) -> list[tuple[str, str]]:
    return [(f"blocks.{i}.mlp.in", f"blocks.{i}.mlp.out") for i in range(subject.n_layers)]


def trainee(subject: Subject, layer: int, source: WindowSource, lr: float) -> Trainee:
    read, write = pairs(subject)[layer]
    built = recipe("topk-short")(
        Ask(
            reads=(Port(site=read, width=subject.d_model),),
            writes=(Port(site=write, width=subject.d_model),),
            n_latents=LATENTS, k=K, penalty=None, lr=lr, later=(),
        )
    )  # fmt: skip
    # In so short a run the auxiliary loss and more latents at first cost more than all the rest,
    # and help less than a start at data and the higher rate do.
    changes = {
        "dead": DeadLatents(auxk=None), "start": Start(decoder="data", encoder=0.3),
        "k_from": None,
    }  # fmt: skip
    return Trainee(
        {name: Dictionary(spec) for name, spec in built.specs.items()},
        built.settings.model_copy(update=changes),
        steps=source.steps, batch=source.batch, seed=1 + layer, name=f"L{layer}",
    )  # fmt: skip


def save(trainees: list[Trainee], out: Path) -> None:
    for one in trainees:
        with new_folder(out / one.name) as partial:
            for dictionary in one.dictionaries.values():
                save_dictionary(dictionary, partial)


@torch.no_grad()
def fvu(dictionary: Dictionary, x: Tensor, y: Tensor) -> dict[str, float]:
    """Held-out variance unexplained, of all rows and of the 97 % that are not giants."""
    x, y = x.float(), y.float()
    small = y.norm(dim=1) <= y.norm(dim=1).quantile(0.97)
    found = {}
    for name, rows in (("fvu", torch.ones_like(small)), ("fvu_typical", small)):
        code = dictionary.encode(x[rows])
        found[name] = fidelity_of(fidelity_sums(y[rows], dictionary(x[rows]), code)).fvu
    return found


def measured(subject: Subject, rows: Tensor, trainees: list[Trainee], workers: Workers) -> dict:
    sites = [site for pair in pairs(subject) for site in pair]
    settings = HarvestSettings(window_tokens=rows.numel(), store="subject")
    harvester = Harvester(subject, rows, sites, workers=workers, seed=0, settings=settings)
    vectors = harvester.window(0).vectors
    each = [
        fvu(one.dictionaries["dictionary"], vectors[read], vectors[write])
        for one, (read, write) in zip(trainees, pairs(subject), strict=True)
    ]
    means = {f"mean {name}": sum(e[name] for e in each) / len(each) for name in each[0]}
    return {**means, "layers": [{n: round(v, 4) for n, v in e.items()} for e in each]}


def all_layers(options: argparse.Namespace) -> dict:
    """The whole way, with the network's own passes before and after."""
    begin = clock()
    subject = load_subject(NAME, dtype="bfloat16")
    loading = since(begin)
    text = token_rows(
        subject, "wiki", tokens=options.tokens + 2 * HELDOUT, context=CONTEXT, heldout_share=0.1
    )
    rows = text.train[: options.tokens // CONTEXT]
    reading = since(begin)
    own_passes(subject, rows[:16])
    own = [own_passes(subject, rows[:96])]
    bare = [own_passes(subject, rows[:96], logits=False)]
    begin, phases = clock(), Phases()
    with Workers(options.threads) as workers:
        settings = HarvestSettings(window_tokens=options.window, store="subject")
        sites = [site for pair in pairs(subject) for site in pair]
        harvester = Harvester(
            subject, rows, sites, workers=workers, seed=0, settings=settings, shuffled=True
        )
        source = WindowSource(harvester, batch=options.batch)
        trainees = [trainee(subject, i, source, options.lr) for i in range(subject.n_layers)]
        with phases.watching():
            train(
                trainees, source, begin=source.first(), workers=workers,
                settings=TrainSettings(log_every=10_000),
            )  # fmt: skip
        save(trainees, options.out)
        working = since(begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        held = measured(subject, text.heldout[: HELDOUT // CONTEXT], trainees, workers)
    own.append(own_passes(subject, rows[:96]))
    bare.append(own_passes(subject, rows[:96], logits=False))
    total = reading["cpu"] - loading["cpu"] + working["cpu"]
    forward = sum(own) / len(own) * rows.numel()
    bare_forward = sum(bare) / len(bare) * rows.numel()
    exact = load_subject(NAME, dtype="float32")
    own_passes(exact, rows[:16])
    full = own_passes(exact, rows[:32]) * rows.numel()
    return {
        "threads": options.threads, "tokens": rows.numel(), "vectors trained on":
        source.steps * source.batch, "batch": options.batch, "steps": source.steps,
        "lr": options.lr, "load average": round(os.getloadavg()[0], 2),
        "seconds": {"loading the network": loading, "text to dictionaries":
            {"cpu": round(total, 2), "wall": round(
                reading["wall"] - loading["wall"] + working["wall"], 2)}},
        "forward passes, CPU seconds": {
            "bfloat16, logits, memory kept": round(forward, 2),
            "bfloat16, no logits, memory kept": round(bare_forward, 2),
            "float32, logits, memory kept": round(full, 2)},
        "ratio to bfloat16, logits, memory kept": round(total / forward, 3),
        "CPU seconds by phase": phases.found(), "peak GiB": round(peak, 2),
        "held out": held,
    }  # fmt: skip


def own(options: argparse.Namespace) -> dict:
    """Milliseconds a token of the network's passes as they come, in a fresh process."""
    subject = load_subject(NAME, dtype="bfloat16")
    text = token_rows(subject, "wiki", tokens=32_768, context=CONTEXT)
    own_passes(subject, text.train[:16])
    return {
        name: round(1e3 * own_passes(subject, text.train[:128], logits=logits), 4)
        for name, logits in (("logits", True), ("no logits", False))
    }


def saelens(options: argparse.Namespace) -> dict:
    """SAELens, one layer: its autoencoder's training alone, on as many of our vectors."""
    subject = load_subject(NAME, dtype="bfloat16")
    text = token_rows(subject, "wiki", tokens=options.tokens + 2 * HELDOUT, context=CONTEXT)
    site = "blocks.12.mlp.out"
    with Workers(1) as workers:
        rows = text.train[: options.tokens // CONTEXT]
        settings = HarvestSettings(window_tokens=rows.numel())
        window = Harvester(
            subject, rows, [site], workers=workers, seed=0, settings=settings, shuffled=True
        ).window(0)
    file = options.out / "vectors.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(window.vectors[site], file)
    found = {}
    for mode in ("default", "autocast"):
        done = subprocess.run(
            [options.python, HERE / "saelens_one_layer.py", file, str(options.batch), mode],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[mode] = json.loads(done.stdout.splitlines()[-1])
    file.unlink()
    return found | {"tokens": rows.numel()}


def main() -> None:
    arms: dict[str, Callable[[argparse.Namespace], dict]] = {
        "all": all_layers, "own": own, "saelens": saelens,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arm", choices=arms)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--batch", type=int, default=4064)
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--out", type=Path, default=Path("runs/all_layers"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.arm != "own":
        keep_freed_memory()
    found = arms[options.arm](options)
    file = HERE / "numbers.json"
    numbers = json.loads(file.read_text()) if file.is_file() else {}
    key = options.arm if options.arm != "all" else f"all, threads {options.threads}{options.note}"
    file.write_text(json.dumps(numbers | {key: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
