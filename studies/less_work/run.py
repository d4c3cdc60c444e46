"""Ways of doing less work, at equal time: one process, arms in turns of a few steps, one thread.

    python studies/less_work/run.py WORK --kind real --n 16384 --steps 150 [--seed 0] [--arms ...]

WORK holds the vectors of `benchmarks.vectors`, or gets them. What a step of each arm costs is
measured first, interleaved; then each arm gets as many steps, with a schedule of its own, as fit
into the time of the plain run. Appends to results.jsonl beside this script.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from arms import ARMS, WIDTH, K, Run

from benchmarks.vectors import WORLD, vectors
from unweave.dictionaries.kernels.select import largest
from unweave.dictionaries.metrics import fidelity_of, fidelity_sums
from unweave.subject import keep_freed_memory
from unweave.training.dead import DeadLatents
from unweave.validate.worlds.peers_workload import peers_workload

HERE, TURN, CALIBRATED = Path(__file__).parent, 5, 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--kind", choices=["planted", "real"], required=True)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--heldout", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--costs-only", action="store_true")
    parser.add_argument("--no-auxk", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = np.memmap(vectors(asked.kind, asked.work), np.float32, "r").reshape(-1, WIDTH)
    x = torch.from_numpy(rows[: asked.rows].copy())
    heldout = torch.from_numpy(rows[-asked.heldout :].copy())
    costs = calibrated(asked, x)
    sizes = {name: getattr(asked, name) for name in ("kind", "n", "batch", "seed", "no_auxk")}
    if asked.costs_only:
        keep([sizes | {"arm": a, "step_ms": 1e3 * c, "costs_only": 1} for a, c in costs.items()])
        return
    keep(raced(asked, x, heldout, costs, sizes))


def calibrated(asked, x) -> dict[str, float]:
    """CPU seconds of a step, as the median of the later ones of a short run of all in turn."""
    runs = {a: made(a, asked, x, CALIBRATED) for a in asked.arms}
    spent = {a: [] for a in runs}
    for _ in range(CALIBRATED):
        for name, run in runs.items():
            spent[name].append(timed(run.step))
    return {name: statistics.mean(sorted(s[CALIBRATED // 2 :])[:-3]) for name, s in spent.items()}


def made(name: str, asked, x, steps: int) -> Run:
    changes = {"dead": DeadLatents(auxk=None)} if asked.no_auxk else {}
    return Run(name, asked.kind, asked.n, x, steps, asked.batch, asked.seed, changes)


def timed(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def raced(asked, x, heldout, costs, sizes) -> list[dict]:
    """Every arm for as long as the plain one, in turns."""
    steps = {a: max(20, round(asked.steps * costs["plain"] / costs[a])) for a in asked.arms}
    runs = {a: made(a, asked, x, steps[a]) for a in asked.arms}
    spent, curves = dict.fromkeys(runs, 0.0), {a: [] for a in runs}
    for turn in range(1, 1 + asked.steps // TURN):
        for name, run in runs.items():
            until = round(steps[name] * turn * TURN / (asked.steps // TURN * TURN))
            while run.trainee.step_index < until:
                spent[name] += timed(run.step)
            if turn % max(1, asked.steps // TURN // 6) == 0 or until == steps[name]:
                curves[name].append((spent[name], fvu(run, heldout)))
    lines = []
    for name, run in runs.items():
        line = sizes | {"arm": name, "step_ms": 1e3 * costs[name], "steps": steps[name]}
        line |= {"cpu_seconds": spent[name], "curve": curves[name], "recall": recall(run, heldout)}
        run.trainee.finish()
        line |= {"fvu": fvu(run, heldout), "found": found(run, asked)}
        line["alive"] = float((run.dictionary.encode(heldout).fired() > 0).float().mean())
        lines.append(line)
        print(json.dumps(line), flush=True)
    return lines


def fvu(run: Run, heldout) -> float:
    """Held out, with the whole dictionary."""
    dictionary, screen = run.dictionary, getattr(run.dictionary.encoder, "screen", None)
    if screen is not None:
        dictionary.encoder.screen = None
    with torch.no_grad():
        code = dictionary.encode(heldout)
        value = fidelity_of(fidelity_sums(heldout, dictionary.decode(code), code)).fvu
    if screen is not None:
        dictionary.encoder.screen = screen
    return value


def found(run: Run, asked) -> float | None:
    """Share of planted features with a decoder row at cosine above 0.9."""
    if asked.kind != "planted":
        return None
    truth = peers_workload(seed=WORLD).directions
    rows = torch.nn.functional.normalize(run.dictionary.directions(), dim=1)
    return float(((truth @ rows.T).amax(1) > 0.9).float().mean())


def recall(run: Run, heldout) -> float | None:
    """Share of the truly k largest that screening would have chosen."""
    if (screen := run.screen()) is None:
        return None
    with torch.no_grad():
        scorer = run.dictionary.encoder.__class__.scorer
        run.dictionary.encoder.screen = None
        exact = scorer(run.dictionary.encoder, torch.float32)
        x = heldout * run.dictionary.input_scale
        true = largest(exact, x, len(exact.W), K)
        got = largest(screen(exact), x, len(exact.W), K).support.latent.view(-1, K)
        hit = (true.support.latent.view(-1, K, 1) == got[:, None]).any(2)
        return float(hit[true.score.view(-1, K) > 0].float().mean())


def keep(lines: list[dict]) -> None:
    with (HERE / "results.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    main()
